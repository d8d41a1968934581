"""A service that has another name in the configuration than in the journal."""

from dataclasses import replace

import pytest
from support.rollout_host import GIB, Host

from swapd.core.errors import Problem
from swapd.core.model import Op, OpKind
from swapd.core.renaming import rename, renamed
from swapd.core.rollout import step

HERE, THERE, ELSEWHERE = "127.0.0.1:8000", "127.0.0.1:8001", "127.0.0.1:8002"


def soaking():
    host = Host(total=36 * GIB)
    host.add("chat", "a", listen=(HERE,))
    host.settle(until_idle=False)
    host.swap("chat", "b")
    host.settle(until_idle=False)
    return host.state


@pytest.mark.parametrize(
    ("listen", "names"),
    [
        ({"talk": (HERE,)}, {"chat": "talk"}),
        ({"talk": (THERE, HERE)}, {"chat": "talk"}),
        ({"chat": (THERE,), "talk": (HERE,)}, {}),
        ({"talk": (THERE,)}, {}),
        ({"talk": (HERE,), "other": (ELSEWHERE,)}, {"chat": "talk"}),
    ],
)
def test_it_is_known_by_an_address(listen, names):
    assert renamed(soaking(), listen) == names


def test_where_two_could_be_meant_neither_is():
    state = soaking()
    both = replace(state.services[0], settings=replace(state.services[0].settings, listen=(HERE, THERE)))
    assert renamed(replace(state, services=(both,)), {"one": (HERE,), "two": (THERE,)}) == {}


def test_one_that_is_being_removed_is_another():
    state = soaking()
    assert renamed(replace(state, services=(replace(state.services[0], leaving=True),)), {"talk": (HERE,)}) == {}


def test_everything_of_it_has_the_new_name_and_what_is_another_services_is_left_alone():
    state = soaking()
    busy = replace(state.workers[0], op=Op(99, OpKind.DRAIN, "chat", state.workers[0].id))
    paused = replace(state.services[0], paused=Problem("SERVICE_PAUSED", "chat is paused"), recoveries=3)
    kept = replace(state.reservations[0], worker_id="return of chat")
    alone = replace(kept, worker_id="return of chat on gpu1", device="gpu1")
    state = replace(
        state,
        services=(paused,),
        workers=(busy, *state.workers[1:]),
        reservations=(kept, *state.reservations[1:], alone),
    )
    new = rename(state, {"chat": "talk"})
    (service,) = new.services
    assert (service.name, service.paused, service.recoveries) == ("talk", None, 0)
    named = [*service.revisions, service.swap, service.swap.source, service.swap.target, *new.workers]
    assert {each.service for each in (*named, *new.reservations, new.workers[0].op)} == {"talk"}
    assert [w.id for w in new.workers] == [w.id for w in state.workers], "a worker keeps its id"
    returns = [r.worker_id for r in new.reservations if r.for_return]
    assert returns == ["return of talk", "return of talk on gpu1"], "both of them"
    assert rename(state, {"other": "talk"}) == state
    assert step(new, Host().swap_request("talk", "a")).reply.target.model == "b", "a return to what the soak keeps"
