"""Swaps whose candidate proves itself on clients' requests, with real servers, real gates and clients that count."""

import json
import os
import signal
import time
from collections import Counter

import pytest
from support.daemon_host import Crowd, Daemon, Refused, model, server, until

# Answers tell how many requests there were, which differs from one model to the other.
CANARY = """
[strategies.quick]
kind = "canary"
steps = [20, 50]
step_time = "1s"
ends = "time"
[strategies.by-hand]
kind = "canary"
steps = [25]
step_time = "0s"
ends = "manual"
[strategies.copies]
kind = "shadow"
ends = "time"
[strategies.copies.shadow]
share = "100%"
time = "1s"
ignore = ["/asked", "/pid"]
"""
DIRECT, BEHIND = [model("a"), model("b")], [server("a"), server("b")]


@pytest.fixture(params=[DIRECT, BEHIND], ids=["direct", "gate"])
def daemon(request):
    with Daemon([*request.param, CANARY]) as daemon:
        yield daemon


def swapping(daemon, **params):
    return daemon.call("swap", service="chat", to="b", **params)


def wait_stage(daemon, record, number):
    """In force, so that clients go by it."""

    def begun():
        now = daemon.call("show", id=record["id"])
        proof = now["delivery"]
        return now if proof["stage"] == number and proof["stage_at"] else None

    return until(begun, what=f"stage {number}")


def stages(record):
    return [(s["name"], s["status"]) for s in record["steps"] if "%" in s["name"]]


def shares(crowd):
    return Counter(name for *_, name in crowd.answers)


def settled(crowd):
    """Nothing went wrong; what a canary mixes on purpose is no error."""
    assert not crowd.errors, crowd.errors
    assert crowd.reconnects == 0


def test_a_canary_takes_its_share_then_more_then_all_and_no_client_notices(daemon):
    front = daemon.service()["front"]
    with Crowd(daemon.port, streaming=0) as crowd:
        record = swapping(daemon, strategy="quick")
        wait_stage(daemon, record, 0)
        assert daemon.service()["front"] == "gate"
        crowd.answers.clear()
        crowd.more(200)
        got = shares(crowd)
        assert 0.15 < got["b"] / got.total() < 0.6, got  # the second stage may have begun
        record = daemon.wait(record["id"])
        switched = time.monotonic()
        crowd.more(50)
        assert {name for begun, *_, name in crowd.answers if begun > switched} == {"b"}
        daemon.call("promote", service="chat", full=True)
        until(lambda: daemon.service()["front"] == front, what="the front of before")
        crowd.more(50)
    settled(crowd)
    assert stages(record) == [("canary 20%", "done"), ("canary 50%", "done")]
    assert record["strategy"] == "quick"


def test_a_shadow_copies_requests_and_clients_get_answers_of_the_old_model_alone(daemon):
    with Crowd(daemon.port, streaming=0) as crowd:
        record = swapping(daemon, strategy="copies")
        wait_stage(daemon, record, 0)
        crowd.answers.clear()
        crowd.more(50)
        if daemon.call("show", id=record["id"])["delivery"]["stage"] == 0:
            assert set(shares(crowd)) == {"a"}
        record = daemon.wait(record["id"])
        crowd.more(20)
    settled(crowd)
    assert stages(record) == [("shadow 100%", "done")]


def test_a_stage_by_hand_waits_for_a_promotion_and_cancel_takes_the_share_back(daemon):
    with Crowd(daemon.port, streaming=0) as crowd:
        record = daemon.wait(swapping(daemon, strategy="by-hand")["id"], ("Paused",))
        assert record["delivery"]["possible"] == ["resume", "promote", "promote --full", "cancel"]
        crowd.answers.clear()
        crowd.more(100)
        got = shares(crowd)
        assert 0.2 < got["b"] / got.total() < 0.3, got
        split = until(lambda: daemon.service()["split"], what="the shares")["weights"]
        assert sorted(weights["set"] for weights in split.values()) == [25.0, 75.0]
        daemon.call("cancel", service="chat", reason="not today")
        record = daemon.wait(record["id"])
        assert (record["phase"], record["error"]["code"]) == ("Canceled", "CANCELED")
        returned = time.monotonic()
        crowd.more(50)
        assert {name for begun, *_, name in crowd.answers if begun > returned} == {"a"}
        record = daemon.wait(swapping(daemon, strategy="by-hand")["id"], ("Paused",))
        daemon.call("promote", service="chat")
        assert daemon.wait(record["id"])["phase"] == "Soaking"
        crowd.more(20)
    settled(crowd)


@pytest.mark.parametrize("stage", ["canary", "paused"])
def test_the_daemon_may_die_in_a_stage_which_goes_on(daemon, stage):
    strategy = "quick" if stage == "canary" else "by-hand"
    with Crowd(daemon.port, streaming=0) as crowd:
        record = swapping(daemon, strategy=strategy)
        if stage == "canary":
            wait_stage(daemon, record, 0)
        else:
            daemon.wait(record["id"], ("Paused",))
        daemon.stop(signal.SIGKILL)
        crowd.more(50)
        daemon.start(healthy=False)
        if stage == "paused":
            assert daemon.call("show", id=record["id"])["phase"] == "Paused"
            crowd.answers.clear()
            crowd.more(100)
            assert 0.2 < shares(crowd)["b"] / 100 < 0.35
            daemon.call("promote", service="chat")
        assert daemon.wait(record["id"])["phase"] == "Soaking"
        crowd.more(20)
    settled(crowd)


def test_a_candidate_that_dies_in_its_canary_is_taken_out_and_the_old_model_goes_on(daemon):
    record = daemon.wait(swapping(daemon, strategy="by-hand")["id"], ("Paused",))
    [candidate] = [w for w in daemon.call("workers") if w["role"] == "candidate"]
    os.kill(candidate["pid"], signal.SIGKILL)
    record = daemon.wait(record["id"])
    assert (record["phase"], record["error"]["code"]) == ("Failed", "WORKER_EXITED")
    assert {daemon.model() for _ in range(20)} == {"a"}


def test_a_rehearsal_touches_nobody(daemon):
    front = daemon.service()["front"]
    with Crowd(daemon.port, streaming=0) as crowd:
        record = daemon.call("rehearse", service="chat", to="b", strategy="copies")
        record = daemon.wait(record["id"])
        crowd.more(20)
        assert set(shares(crowd)) == {"a"}
    settled(crowd)
    assert (record["phase"], record["strategy"]) == ("Succeeded", "rehearsal")
    until(lambda: daemon.service()["front"] == front, what="the front of before")
    until(lambda: len({w["model"] for w in daemon.call("workers")} - {None}) == 1, what="the candidate's end")
    assert daemon.service()["model"] == "a"


def test_controls_without_sense_and_strategies_that_are_not_there_are_refused(daemon):
    for verb in ("pause", "promote"):
        with pytest.raises(Refused) as refused:
            daemon.call(verb, service="chat")
        assert refused.value.code == "NOT_POSSIBLE_NOW"
    with pytest.raises(Refused) as refused:
        swapping(daemon, strategy="qick")
    assert (refused.value.code, refused.value.message) == (
        "BAD_REQUEST",
        'There is no strategy "qick": did you mean "quick"?',
    )
    with pytest.raises(Refused) as refused:
        swapping(daemon, steps="50,5")
    assert refused.value.message == "steps: must grow from one step to the next: write them like 5, 25, 50"


def test_a_rollback_needs_no_stage_and_no_place_beside_what_serves():
    big = [model("a", memory="960MiB"), model("b", memory="960MiB"), CANARY]
    with Daemon(big, service='strategy = "quick"\nsoak = "0s"') as daemon:
        record = daemon.wait(swapping(daemon, strategy="in-place")["id"], ("Succeeded", "Failed"))
        assert record["phase"] == "Succeeded", record["reason"]
        record = daemon.wait(daemon.call("rollback", service="chat")["id"], ("Succeeded", "Failed"))
        assert (record["phase"], record["strategy"], daemon.model()) == ("Succeeded", "in-place", "a")


def test_a_canary_gets_its_share_of_the_sessions_that_were_there_before_it_and_the_soak_keeps_the_rest():
    def whose():
        asked = {n: daemon.get("/", method="POST", body=json.dumps({"user": n})) for n in range(60)}
        return {user: document["model"] for user, (_, _, document, _) in asked.items()}

    with Daemon([server("a"), server("b"), CANARY], service='session_key = "json:/user"\nsoak = "60s"') as daemon:
        assert set(whose().values()) == {"a"}
        record = daemon.wait(swapping(daemon, strategy="by-hand")["id"], ("Paused",))
        shared = whose()
        assert 4 <= Counter(shared.values())["b"] <= 28  # a quarter of 60, by their places
        assert whose() == shared
        daemon.call("promote", service="chat")
        daemon.wait(record["id"], ("Soaking",))
        assert whose() == shared
        assert daemon.model() == "b"


def test_a_restart_goes_through_no_stages_although_swaps_do():
    """The same model again has proved itself, and need not stand beside itself."""
    with Daemon([model("a"), model("b"), CANARY], service='strategy = "by-hand"') as daemon:
        record = daemon.call("restart", service="chat", reason="a leak")
        record = daemon.wait(record["id"])
        assert (record["phase"], record["strategy"]) == ("Soaking", "dual")
        record = daemon.wait(swapping(daemon)["id"], ("Paused",))
        assert record["strategy"] == "by-hand"
