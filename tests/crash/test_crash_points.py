"""Somebody dies at every point of the journal, in every kind of change, while clients ask.

When it is the daemon, clients notice nothing: the next daemon finishes the change or takes it back. When it is what
answers them, or the gate that holds them, only the requests in there are lost, and whoever asks afterwards is answered.

Every point is some hundred deaths, which is what `make soak` is for (CRASH_POINTS=all); without, some of them.
"""

import os

import pytest
from support.changes import CHANGES, KINDS, MOST, Bench, crashing, nothing_is_left_over
from support.daemon_host import Crowd, until

CLIENTS = 6
ALL = os.environ.get("CRASH_POINTS") == "all"
DEATHS = [(n, when) for n in range(1, MOST) for when in ("intended", "done")]
SOME = [(1, "done"), (3, "intended"), (5, "done")]
SOME_PROVED = [(2, "done"), (5, "done"), (6, "intended"), (6, "done")]  # the gate, the candidate, the stage, the switch
CASES = [(kind, change) for kind in KINDS for change in CHANGES]
PAIRS = [
    *[("direct", "dual"), ("gate", "dual"), ("server", "dual"), ("direct", "in-place"), ("server", "in-place")],
    *[("direct", "rollback"), ("gate", "rollback in place"), ("direct", "proved")],
]
SERVING = [
    (kind, who, change)
    for kind, who in [("direct", "incumbent"), ("server", "incumbent"), ("server", "holder")]
    for change in ("dual", "in-place")
]


def strikes(bench, change, daemon, check, who="daemon", how="SIGKILL"):
    """At each point, or some of them, until the change is shorter than that."""
    struck = 0
    for number, when in DEATHS if ALL else SOME_PROVED if change == "proved" else SOME:
        with Crowd(daemon.port, keep_alive=3, first_answers=10) as crowd:
            if not bench.strike(crowd, change, number, when, who, how) and when == "done":
                break
            struck += 1
            crowd.more(10)
        try:
            check(crowd)
        except AssertionError as error:
            raise AssertionError(f"{number} {when}: {error}\n{daemon.output.read_text()[-6000:]}") from None
    assert struck >= (1 if change == "rollback" else len(SOME)), "the points were not reached"
    until(lambda: nothing_is_left_over(daemon), what="no worker that nobody needs, and no process besides")


@pytest.mark.parametrize(("kind", "change"), CASES if ALL else PAIRS)
def test_no_client_notices_a_daemons_death_whatever_the_point(kind, change):
    no_client_notices(kind, change, "SIGKILL")


@pytest.mark.parametrize("how", ["SIGUSR2", "SIGHUP"])
@pytest.mark.parametrize(("kind", "change"), CASES if ALL else [("direct", "in-place"), ("server", "dual")])
def test_no_client_notices_a_successor_or_a_reload_whatever_the_point(kind, change, how):
    no_client_notices(kind, change, how)


def no_client_notices(kind, change, how):
    def check(crowd):
        crowd.check()
        assert bench.record["phase"] != "Failed", bench.record  # nothing is wrong with the model

    with crashing(kind) as daemon:
        bench = Bench(daemon)
        strikes(bench, change, daemon, check, how=how)


@pytest.mark.parametrize(("kind", "who", "change"), SERVING if ALL else SERVING[::2])
def test_a_death_among_the_serving_costs_what_was_in_there_and_nothing_else(kind, who, change):
    def check(crowd):
        assert sum(crowd.errors.values()) <= CLIENTS, crowd.errors

    with crashing(kind) as daemon:
        strikes(Bench(daemon), change, daemon, check, who)
