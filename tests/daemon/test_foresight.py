"""What a plan says beforehand, and whether it comes true: outage, memory, and the way back."""

import contextlib
import re
import threading

import pytest
from support.daemon_host import Daemon, Refused, model, until

A, B = model("a"), model("b")
BIG = model("big", memory="960MiB")


@contextlib.contextmanager
def open_request(daemon, path):
    """A request that is in flight while the block runs; its answer is in the list afterwards."""
    answers = []
    thread = threading.Thread(target=lambda: answers.append(daemon.get(path)))
    thread.start()
    until(lambda: daemon.service()["in_flight"], what="the request in flight")
    yield answers
    thread.join(30)


# --- the outage ----------------------------------------------------------------------------------------------


def test_the_ready_path_and_warm_up_belong_to_the_expected_outage():
    slow = model("slow", memory="960MiB", extra='ready = { path = "/ready" }', READY_AFTER_S="0.5")
    with Daemon([A, slow]) as daemon:
        daemon.swap("slow")
        daemon.swap("a", strategy="in-place")
        planned = daemon.call("plan", service="chat", to="slow")
        assert planned["expected_outage_s"] > 0.5
        with pytest.raises(Refused) as caught:
            daemon.swap("slow", max_outage="400ms")
        assert caught.value.code == "OUTAGE_TOO_LONG"


def test_an_open_stream_may_last_until_the_drain_ends_it_and_counts_so():
    with Daemon([A, BIG], service='drain_timeout = "7s"') as daemon:
        daemon.swap("big")
        daemon.swap("a")
        with open_request(daemon, "/stream?n=20&s=0.1"):
            until(lambda: daemon.call("plan", service="chat", to="big")["open_streams"], what="the stream to begin")
            planned = daemon.call("plan", service="chat", to="big")
            assert planned["longest_stream_s"] == 7.0
            assert 7.0 < planned["expected_outage_s"] < 10.0
            assert "for open requests" in planned["why"]
            with pytest.raises(Refused) as caught:
                daemon.swap("big", max_outage="6s")
            assert caught.value.code == "OUTAGE_TOO_LONG"


def test_a_limit_that_was_asked_for_is_not_risked_on_a_model_that_was_never_loaded():
    with Daemon([A, BIG]) as daemon:
        with pytest.raises(Refused, match="never loaded here") as caught:
            daemon.swap("big", max_outage="1m")
        assert caught.value.code == "OUTAGE_TOO_LONG"
        assert daemon.swap("big")["phase"] == "Soaking"


# --- memory --------------------------------------------------------------------------------------------------


def test_a_candidate_that_takes_what_others_were_promised_fails_and_is_planned_with_its_real_size_from_then_on():
    greedy = model("greedy", HOLD_MB="400")
    with Daemon([A, greedy], budget="300MiB") as daemon:
        record = daemon.swap("greedy")
        assert record["phase"] == "Failed"
        assert record["error"]["code"] in ("VRAM_INSUFFICIENT", "GUARD_KILLED")  # whoever looks first
        assert "device_memory" in record["error"]["message"]
        assert daemon.model() == "a"
        with pytest.raises(Refused) as caught:
            daemon.call("plan", service="chat", to="greedy")
        assert caught.value.details["need_source"] == "learned"
        killed = record["error"]["code"] == "GUARD_KILLED"  # in the midst of its growth
        assert caught.value.details["need_bytes"] > (150 if killed else 400) << 20


def test_a_candidate_that_takes_more_than_it_declares_and_harms_nobody_is_charged_for_it():
    with Daemon([A, model("more", HOLD_MB="200")]) as daemon:
        record = daemon.swap("more")
        [verify] = [step for step in record["steps"] if step["name"] == "verify"]
        assert re.search(r"; it took \d{3} MiB, \d+ MiB were planned", verify["detail"]), verify
        [peak] = record["peak_memory_bytes"].values()
        used = {w["model"]: w["used_bytes"] for w in daemon.call("workers")}
        assert peak > 0.9 * (used["a"] + used["more"])
        reserved = {w["model"]: w["reserved_bytes"] for w in daemon.call("workers")}
        assert reserved["more"] > 200 << 20


# --- the way back --------------------------------------------------------------------------------------------


@pytest.fixture
def overwritten(tmp_path):
    """A service whose model's weights have been overwritten, on a device that holds one model."""
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"first")
    a = model("a", memory="900MiB", extra=f'weights = ["{weights}"]')
    with Daemon([a, BIG]) as daemon:
        weights.write_bytes(b"second")
        yield daemon


def test_in_place_is_refused_where_the_old_model_could_not_come_back(overwritten):
    for to in ("a", "big"):
        with pytest.raises(Refused, match="could not come back") as caught:
            overwritten.swap(to)
        assert caught.value.code == "NO_WAY_BACK"
    planned = overwritten.call("plan", service="chat", to="big", strategy="in-place")
    assert planned["rollback"] == "none"
    overwritten.swap("big", strategy="in-place")
    with pytest.raises(Refused, match="files have changed") as caught:
        overwritten.call("rollback", service="chat")
    assert caught.value.code == "CONTENT_CHANGED"
    assert overwritten.model() == "big"


def test_a_worker_restarted_over_changed_files_serves_under_a_new_revision(overwritten):
    before = overwritten.get()[1]
    overwritten.get("/sleep?s=0")
    with contextlib.suppress(Exception):
        overwritten.get("/crash")
    assert overwritten.get()[1] == before + 1
    assert overwritten.service()["model"] == "a"


def test_a_rollback_is_to_the_settings_that_the_revision_had():
    with Daemon([A, B], service='soak = "0s"') as daemon:
        record = daemon.swap("b")
        daemon.wait(record["id"], ("Succeeded",))
        daemon.write([model("a", EXTRA="new").replace('NAME = "a"', 'NAME = "a-new"'), B], service='soak = "0s"')
        daemon.call("reload")
        record = daemon.call("rollback", service="chat")
        daemon.wait(record["id"], ("Succeeded",))
        assert daemon.model() == "a"
        with pytest.raises(Refused) as caught:
            daemon.call("rollback", service="chat", to="77")
        assert caught.value.code == "UNKNOWN_REVISION"
