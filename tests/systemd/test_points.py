"""Under a real systemd and the units as they are shipped, something happens to the daemon at a point of a change, while
clients ask: none of them is refused, reset, cut off or answered wrongly, and the change ends one way or the other.

Every point is some hundred strikes, which is what `make soak` is for (CRASH_POINTS=all); without, some of them.
"""

from __future__ import annotations

import contextlib
import os

import pytest
from support.daemon_host import Crowd, until
from support.shipped_changes import SERVICES, UNIT, Shipped, booted

pytestmark = pytest.mark.systemd
ALL = os.environ.get("CRASH_POINTS") == "all"
MOST = 25  # operations of one change
POINTS = [(n, when) for n in range(1, MOST) for when in ("intended", "done")]
HOWS = ("kill", "hang", "restart", "reload", "upgrade")
CHANGES = (
    *[("direct", change) for change in ("dual", "in-place", "rollback", "rollback in place")],
    *[("gated", change) for change in ("dual", "in-place", "rollback", "rollback in place")],
    ("brief", "soak"),
)
EVERY = [(how, *change, None) for change in CHANGES for how in HOWS]
SOME = [
    ("kill", "direct", "dual", (3, "intended")),
    ("hang", "direct", "in-place", (5, "done")),
    ("upgrade", "direct", "in-place", (6, "intended")),
    ("restart", "direct", "rollback in place", (3, "done")),
    ("reload", "direct", "dual", (5, "done")),
    ("kill", "gated", "rollback", (1, "intended")),
    ("reload", "gated", "in-place", (3, "intended")),
    ("upgrade", "gated", "dual", (4, "done")),
    ("hang", "brief", "soak", (0, "")),
    ("restart", "brief", "soak", (1, "intended")),
]


@pytest.fixture(scope="module")
def daemon(systemd, tmp_path_factory):
    with booted(tmp_path_factory.mktemp("host")) as host:
        daemon = Shipped(host)
        with contextlib.closing(daemon):
            daemon.start()
            yield daemon


@pytest.mark.parametrize(("how", "service", "change", "point"), EVERY if ALL else SOME)
def test_no_client_notices_whatever_happens_to_the_daemon_at_a_point(daemon, how, service, change, point):
    points = [point] if point else [(0, ""), *POINTS] if change == "soak" else POINTS
    struck = 0
    for number, when in points:
        try:
            reached = strike(daemon, how, service, change, number, when)
        except AssertionError as error:
            raise AssertionError(f"{number} {when}: {error}\n{daemon.host.units_log[-6000:]}") from None
        struck += reached
        if not reached and when == "done":
            break
    assert struck, "no point was reached"
    print(f"{how} in {change} of {service}: {struck} points")


def strike(daemon: Shipped, how: str, service: str, change: str, number: int, when: str) -> bool:
    """Whether the change was long enough to strike in it."""
    with contextlib.ExitStack() as stack:
        crowds = {}
        for name, port in daemon.ports.items():
            size = {"keep_alive": 3} if name == service else {"keep_alive": 1, "reconnecting": 1}
            crowds[name] = stack.enter_context(Crowd(port, first_answers=10, pause_s=0.005, **size))
        crowd = crowds[service]
        record = daemon.strike(crowd.mark, service, change, how, number, when)
        for each in crowds.values():
            each.more(20)
    for each in crowds.values():
        each.check()
    if record is not None:
        is_true(record, change, daemon.service(service), crowd.answers[-1])
    until(daemon.nothing_is_left_over, what="no worker that nobody needs, and no process besides")
    kept = str(1 + len(SERVICES))
    until(lambda: daemon.host.show(UNIT, "NFileDescriptorStore") == kept, what="every address, and the control socket")
    return record is not None


def is_true(record, change: str, service, answer) -> None:
    """What history says is how it is: nothing is wrong with the models, so no change has failed."""
    ends = {"soak": ["Succeeded"], "rollback": ["Canceled"]}  # of the swap that soaked: any other change has its own
    assert record["phase"] in ends.get(change, ["Soaking", "Canceled"])
    serves = record["from"] if record["phase"] == "Canceled" else record["to"]
    assert {key: service[key] for key in serves} == serves
    assert (answer[2], answer[3]) == (serves["revision"], serves["model"])
    running = [step["name"] for step in record["steps"] if step["status"] == "running"]
    assert running == (["soak"] if record["phase"] == "Soaking" else [])
    assert all(step["ms"] is None or step["ms"] >= 0 for step in record["steps"])
    assert record["error"] is None, record["error"]
