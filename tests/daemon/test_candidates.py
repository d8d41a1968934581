"""A candidate that is killed, or stops to do anything, at any step of a swap under load: clients notice nothing."""

import os
import signal

import pytest
from support.daemon_host import Crowd, Daemon, model, until

SIGNALS = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}
SLOW = {"LOAD_S": "0.6", "READY_AFTER_S": "2.0", "PROBE_S": "0.4"}
READY = '[models.b.ready]\npath = "/ready"\ntimeout = "5s"\n'
MEMORY = {"dual": "100MiB", "in-place": "960MiB"}
CODES = {"WORKER_EXITED", "NOT_READY", "PROBE_FAILED", "PROBE_TOO_SLOW", "HAND_OVER_FAILED", "TIMEOUT"}


def candidate_at(daemon, swap_id, step):
    """Its process, once that step is under way."""

    def arrived():
        steps = {s["name"]: s["status"] for s in daemon.call("show", id=swap_id)["steps"]}
        found = [w["pid"] for w in daemon.call("workers") if w["role"] == "candidate" and w["pid"]]
        return found[0] if found and steps.get(step) == "running" else None

    return until(arrived, what=f"step {step}")


def assert_back(daemon, record, crowd, strategy, *, kept):
    """`kept`: the process that served before, and was not to be ended."""
    assert (record["phase"], record["strategy"]) == ("Failed", strategy)
    assert record["error"]["code"] in CODES
    crowd.more(30)
    crowd.check()
    assert {m for *_, m in crowd.answers} == {"a"}
    assert kept in (None, daemon.get("/")[2]["pid"])
    until(lambda: [w["role"] for w in daemon.call("workers") if w["role"] != "gate"] == ["stable"], what="nothing left")


@pytest.mark.parametrize("strategy", MEMORY)
@pytest.mark.parametrize(
    ("how", "step"),
    [*(("killed", step) for step in ("spawn", "load", "warm", "verify")), ("stopped", "load"), ("stopped", "verify")],
)
def test_a_candidate_that_ends_while_it_is_made_ready_touches_nobody(strategy, step, how):
    b = model("b", memory=MEMORY[strategy], extra=READY, **SLOW)
    with Daemon([model("a"), b]) as daemon, Crowd(daemon.port) as crowd:
        pid = daemon.get("/")[2]["pid"]
        swap = daemon.call("swap", service="chat", to="b")
        os.kill(candidate_at(daemon, swap["id"], step), SIGNALS[how])
        record = daemon.wait(swap["id"])
        steps = ("spawn", "confirm", "load") if step == "spawn" else (step,)  # that one is short
        assert record["error"]["step"] in steps
        assert_back(daemon, record, crowd, strategy, kept=pid if strategy == "dual" or step == "spawn" else None)


@pytest.mark.parametrize("strategy", MEMORY)
@pytest.mark.parametrize("how", SIGNALS)
def test_a_candidate_that_ends_as_it_gets_the_clients_leaves_them_where_they_were(strategy, how):
    b = model("b", memory=MEMORY[strategy], FAIL=f"{how}_at_switch")
    with Daemon([model("a"), b]) as daemon, Crowd(daemon.port) as crowd:
        pid = daemon.get("/")[2]["pid"]
        record = daemon.swap("b")
        assert_back(daemon, record, crowd, strategy, kept=pid if strategy == "dual" else None)
