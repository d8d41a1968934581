"""What is said of a service that only its workers and the journal can be asked about."""

from dataclasses import replace

import pytest

from swapd.core.offline import Known, Reach, Seen, known_services, reach, revision_in, service_record, worker_record

A = Seen("chat-1", "chat", "asgi", 1, "a", pid=10, stats={"owner": True, "epoch": 3, "state": "serving", "requests": 7})
B = Seen("chat-2", "chat", "asgi", 2, "b", pid=11, stats={"owner": False, "epoch": 0, "state": "loaded"})
ENGINE = Seen("chat-3", "chat", "engine", 3, "c", pid=12, stats={"owner": False, "state": "loaded"})
GATE = Seen("chat-gate-4", "chat", "gate", 0, "", pid=13, stats={"owner": True, "epoch": 4, "points_to": "chat-3"})
HOLDS = replace(GATE, stats={**GATE.stats, "points_to": None})
GONE = {"gone": True, "pid": None, "stats": {}}
SILENT = {"problem": "did not answer within 1 s", "stats": {}}


def swap(**changes):
    ends = {"from": {"revision": 1, "model": "a"}, "to": {"revision": 2, "model": "b"}}
    return {"id": 9, "service": "chat", "phase": "Succeeded", "actor": "ana", "soak_until": None, **ends, **changes}


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        ([], Reach.DOWN),
        ([A, B], Reach.SERVING),
        ([B], Reach.DOWN),
        ([replace(A, **GONE), B], Reach.DOWN),
        ([replace(A, **SILENT), B], Reach.UNKNOWN),
        ([GATE, ENGINE], Reach.SERVING),
        ([HOLDS, ENGINE], Reach.HOLDING),
        ([GATE, replace(ENGINE, **GONE)], Reach.DOWN),
        ([GATE], Reach.DOWN),
        ([GATE, replace(ENGINE, **SILENT)], Reach.UNKNOWN),
        ([replace(GATE, stats={"owner": True, "epoch": 1})], Reach.UNKNOWN),  # of a version that does not say
    ],
)
def test_what_clients_get_is_what_the_workers_say(workers, expected):
    known = Known("chat", workers=workers)
    assert reach(known) is expected
    record = service_record(known, daemon_runs=False)
    assert record["health"] == expected.value
    mute = expected is Reach.SERVING or (workers and "points_to" not in workers[0].stats and workers[0].is_gate)
    assert (record["problem"] is None) == bool(mute)


def test_in_the_middle_of_a_hand_over_the_later_epoch_owns():
    both = Known("chat", workers=[A, replace(B, stats={**B.stats, "owner": True, "epoch": 5})])
    assert service_record(both, daemon_runs=True)["model"] == "b"


def test_what_is_not_known_is_not_made_up():
    record = service_record(Known("chat", workers=[replace(A, **SILENT)]), daemon_runs=False)
    unknown = ("revision", "requests", "in_flight", "rollback", "front", "config_model", "swap", "drift")
    assert {key: record[key] for key in unknown} == dict.fromkeys(unknown)
    assert "chat-1 (pid 10): did not answer within 1 s" in record["problem"]["message"]


@pytest.mark.parametrize(
    "row",
    [
        {"stable": {"number": 2, "model": "b"}},
        {"stable": 2, "revisions": [{"number": 1, "model": "a"}, {"number": 2, "model": "b"}]},
    ],
)
def test_the_stable_revision_is_found_in_the_rows_of_either_schema(row):
    assert revision_in(row, "stable") == {"number": 2, "model": "b"}
    assert revision_in(row, "previous") is None
    known = Known("chat", row, [swap()], config_model="a", workers=[B])
    assert service_record(known, daemon_runs=True)["drift"] == "config a, running b (#2, ana)"
    assert worker_record(known, B)["role"] == "stable"
    assert worker_record(known, A)["role"] == "previous"


def test_what_waits_for_the_daemon_is_said_only_while_it_is_away():
    soaking = swap(phase="Soaking", soak_until=99.0)
    known = Known("chat", {"previous": None}, [soaking], workers=[A, B])
    assert service_record(known, daemon_runs=True)["note"] is None
    record = service_record(known, daemon_runs=False)
    assert record["note"] == "swap 9 was left Soaking: it goes on, or is undone, when swapd runs again"
    assert (record["rollback"], record["soak"]["until"]) == ("instant", 99.0)
    parked = Known("chat", {}, [soaking], workers=[replace(A, stats={"state": "parked"}), B])
    assert service_record(parked, daemon_runs=False)["rollback"] == "parked"
    ended = Known("chat", {"previous": 1}, [swap()], workers=[A])
    assert service_record(ended, daemon_runs=False)["note"] is None
    assert service_record(ended, daemon_runs=False)["rollback"] == "cold"


def test_the_candidate_of_a_swap_that_was_left_is_called_so():
    known = Known("chat", {"stable": {"number": 1, "model": "a"}}, [swap(phase="Progressing")], workers=[A, B])
    assert [worker_record(known, w)["role"] for w in (A, B, GATE)] == ["stable", "candidate", "gate"]


def test_a_service_is_known_by_the_configuration_or_else_by_what_it_left():
    rows = {"chat": {}, "removed": {}}
    configured = [("chat", ("127.0.0.1:1",), "a")]
    stray = replace(A, service="stray")
    assert [k.name for k in known_services(configured, rows, [A, stray], {})] == ["chat", "stray"]
    assert [k.name for k in known_services([], rows, [A], {})] == ["chat", "removed"]


def test_a_paused_service_says_why():
    paused = {"paused": {"code": "SERVICE_PAUSED", "message": "the daemon ended three times in the middle of swap 9"}}
    record = service_record(Known("chat", paused, workers=[A]), daemon_runs=False)
    assert record["note"] == "paused: the daemon ended three times in the middle of swap 9"
