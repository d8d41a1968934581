"""Swaps of a real daemon with real workers, under clients that count every loss."""

import os

import pytest
from support.daemon_host import Crowd, Daemon, Refused, model, server, until
from support.safetensors_files import write

A = model("a")
B = model("b")
BIG = model("big", memory="960MiB")


@pytest.fixture
def daemon():
    with Daemon([A, B, BIG]) as daemon:
        yield daemon


def test_a_dual_swap_loses_no_request_and_is_monotonic(daemon):
    with Crowd(daemon.port) as crowd:
        record = daemon.swap("b")
        crowd.more()
        crowd.mark()
        back = daemon.swap("a", reason="and back")
        crowd.more()
    crowd.check()
    assert record["strategy"] == "dual"
    assert record["phase"] == "Soaking"
    assert record["cutover_ms"] is not None
    assert back["phase"] == "Canceled", "a swap to what the soak keeps is the instant return"
    assert {m for *_, m in crowd.answers} == {"a", "b"}


def test_an_in_place_swap_holds_the_clients_and_loses_none(daemon):
    with Crowd(daemon.port) as crowd:
        record = daemon.swap("big")
        crowd.more()
    crowd.check()
    assert record["strategy"] == "in-place"
    assert "dual impossible" in record["why"]
    assert record["outage_ms"] > record["cutover_ms"]
    names = [s["name"] for s in record["steps"]]
    assert names == ["spawn", "hold", "drain", "stop", "confirm", "load", "warm", "verify", "switch", "soak"]


def test_many_swaps_to_and_fro_lose_nothing(daemon):
    with Crowd(daemon.port, keep_alive=8, reconnecting=3) as crowd:
        for number in range(6):
            crowd.mark()
            daemon.swap("b" if number % 2 == 0 else "a", strategy="in-place" if number % 3 == 2 else "dual")
            crowd.more(30)
    crowd.check()


def test_rollback_after_the_soak_of_a_resident_revision_is_instant(daemon):
    daemon.swap("b")
    pid = daemon.call("workers")
    planned = daemon.call("plan", service="chat", to="a")
    assert planned["why"].startswith("a return"), planned
    assert (planned["expected_outage_s"], planned["rollback"]) == (0.0, "none")
    [kept] = [w["reserved_bytes"] for w in pid if w["model"] == "a"]
    assert (planned["need_bytes"], planned["need_detail"]) == (kept, "promised when it was loaded")
    record = daemon.call("rollback", service="chat", reason="worse answers")
    record = daemon.wait(record["id"], ("Canceled",))
    assert 0 < record["return_cutover_ms"] == record["return_outage_ms"]
    assert daemon.model() == "a"
    assert [s["name"] for s in record["steps"]][-1] == "restore: switch"
    assert any(w["model"] == "a" for w in pid)
    with pytest.raises(Refused, match="no previous revision") as caught:
        daemon.call("rollback", service="chat")
    assert caught.value.code == "NOTHING_TO_ROLL_BACK"


def test_rollback_of_an_in_place_swap_is_in_place(daemon):
    with Crowd(daemon.port) as crowd:
        daemon.swap("big")
        crowd.more(30)
        crowd.mark()
        record = daemon.call("rollback", service="chat")
        record = daemon.wait(record["id"])
        crowd.more(30)
    crowd.check()
    assert record["to"]["model"] == "a"
    assert record["phase"] == "Soaking"
    assert daemon.model() == "a"


def test_a_second_swap_is_refused_while_one_is_under_way(daemon):
    with Daemon([A, model("slow", LOAD_S="3")]) as daemon:
        first = daemon.call("swap", service="chat", to="slow")
        with pytest.raises(Refused) as caught:
            daemon.call("swap", service="chat", to="slow")
        assert caught.value.code == "SWAP_IN_PROGRESS"
        canceled = daemon.call("cancel", service="chat")
        assert canceled["id"] == first["id"]
        record = daemon.wait(first["id"], ("Canceled",))
        assert "canceled by" in record["reason"]
        assert daemon.model() == "a"
        until(lambda: len(daemon.call("workers")) == 1, what="the candidate gone")


def test_what_already_serves_is_refused_and_restart_is_not(daemon):
    with pytest.raises(Refused) as caught:
        daemon.swap("a")
    assert caught.value.code == "ALREADY_SERVING"
    before = daemon.get()[2]["pid"]
    record = daemon.wait(daemon.call("restart", service="chat")["id"])
    assert record["to"]["model"] == "a"
    assert daemon.get()[2]["pid"] != before


def test_an_outage_longer_than_allowed_is_refused_and_nothing_is_touched(daemon):
    before = daemon.get()[2]["pid"]
    with pytest.raises(Refused) as caught:
        daemon.swap("big", max_outage="0s")
    assert caught.value.code == "OUTAGE_TOO_LONG"
    with pytest.raises(Refused) as caught:
        daemon.swap("big", strategy="dual")
    assert caught.value.code == "VRAM_INSUFFICIENT"
    assert "960 MiB" in caught.value.message
    assert daemon.get()[2]["pid"] == before
    assert daemon.call("history") == []


def test_unknown_names_are_refused_with_what_there_is(daemon):
    for method, params, code in (
        ("swap", {"service": "chta", "to": "b"}, "UNKNOWN_SERVICE"),
        ("swap", {"service": "chat", "to": "bb"}, "UNKNOWN_MODEL"),
        ("show", {"id": 99}, "UNKNOWN_SWAP"),
        ("cancel", {"service": "chat"}, "NOTHING_TO_CANCEL"),
        ("rollback", {"service": "chat"}, "NOTHING_TO_ROLL_BACK"),
        ("rollback", {"service": "chat", "to": "\u00b2"}, "UNKNOWN_MODEL"),  # a digit to Unicode, and no number
        ("rollback", {"service": "chat", "to": "77"}, "UNKNOWN_REVISION"),
        ("logs", {"target": "../journal"}, "UNKNOWN_WORKER"),
    ):
        with pytest.raises(Refused) as caught:
            daemon.call(method, **params)
        assert caught.value.code == code


def test_a_new_swap_ends_the_soak_and_frees_the_kept_revision(daemon):
    daemon.swap("b")
    record = daemon.swap("a", strategy="dual")  # the instant return
    assert record["phase"] == "Canceled"
    daemon.swap("b")
    third = daemon.swap("big")
    assert third["strategy"] == "in-place"
    history = daemon.call("history")
    assert [r["phase"] for r in history] == ["Soaking", "Succeeded", "Canceled"]
    until(lambda: len(daemon.call("workers")) == 1, what="only big left")


def test_a_model_without_probes_is_told_before_and_after():
    with Daemon([A, model("unproved", probes=False)]) as daemon:
        assert daemon.call("plan", service="chat", to="unproved")["probes"] == 0
        record = daemon.swap("unproved")
        details = {s["name"]: s["detail"] for s in record["steps"]}
        assert details["verify"] == "no probes are configured"
        assert daemon.call("plan", service="chat", to="a", strategy="in-place")["probes"] == 1


@pytest.mark.parametrize("make", [model, server])
def test_weight_files_are_in_the_page_cache_before_clients_are_held(tmp_path, make):
    """Of an app without a `stage` hook, and of a server of another make. Really dropped from the page cache before."""
    path = tmp_path / "weights.safetensors"
    tensors = {"w": ("U8", [8 << 20], bytes(8 << 20))}
    with write(path, tensors).open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with Daemon([A, make("big", memory="960MiB", WEIGHTS=path)]) as daemon, Crowd(daemon.port) as crowd:
        record = daemon.swap("big")
        crowd.more()
    crowd.check()
    names = [step["name"] for step in record["steps"]]
    assert names[:4] == ["spawn", "stage", "hold", "drain"]
    detail = record["steps"][1]["detail"]
    assert detail.startswith("8 MiB of weights: ")
    assert detail.endswith("8 MiB read") or "0 B was cached" not in detail  # a file system that keeps all in memory
