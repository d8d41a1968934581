"""Somebody dies at every point of the journal, in every kind of change, while clients ask.

When it is the daemon, clients notice nothing: the next daemon finishes the change or takes it back. When it is what
answers them, or the gate that holds them, only the requests in there are lost, and whoever asks afterwards is answered.
"""

import pytest
from support.changes import CHANGES, KINDS, MOST, Bench, crashing, nothing_is_left_over
from support.daemon_host import Crowd, until

CLIENTS = 6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", CHANGES)
def test_no_client_notices_a_daemons_death_whatever_the_point(kind, change):
    with crashing(kind) as daemon:
        bench = Bench(daemon)
        for number in range(1, MOST):
            deaths = 0
            for when in ("intended", "done"):
                with Crowd(daemon.port, keep_alive=3, first_answers=10) as crowd:
                    deaths += bench.strike(change, number, when)
                    crowd.more(10)
                assert not crowd.errors, (number, when, crowd.errors, daemon.output.read_text()[-6000:])
                assert crowd.reconnects == 0
            if not deaths:
                break
        assert number > (1 if change == "rollback" else 5), "the points were not reached"
        until(lambda: nothing_is_left_over(daemon), what="no worker that nobody needs, and no process besides")


@pytest.mark.parametrize(("kind", "who"), [("direct", "incumbent"), ("server", "incumbent"), ("server", "holder")])
@pytest.mark.parametrize("change", ["dual", "in-place"])
def test_a_death_among_the_serving_costs_what_was_in_there_and_nothing_else(kind, who, change):
    with crashing(kind) as daemon:
        bench = Bench(daemon)
        for number in range(1, MOST):
            with Crowd(daemon.port, keep_alive=3, first_answers=10) as crowd:
                struck = bench.strike(change, number, "intended", who)
                crowd.more(10)
            assert sum(crowd.errors.values()) <= CLIENTS, (number, crowd.errors, daemon.output.read_text()[-6000:])
            if not struck:
                break
        assert number > 5, "the points were not reached"
        until(lambda: nothing_is_left_over(daemon), what="no worker that nobody needs, and no process besides")
