"""Swaps on GPUs: the real daemon, real workers and their hooks. Only the memory of the GPU is made up."""

import os
import signal
import subprocess

from support.daemon_host import Crowd, until
from support.gpu_host import GIB

STAGE = "stage = true"


def steps(record, status=None):
    return [s["name"] for s in record["steps"] if status in (None, s["status"])]


def workers(daemon):
    return {w["model"]: w for w in daemon.call("workers") if w["model"]}


def used(daemon, model):
    return workers(daemon)[model]["used_bytes"]


def roll_back(daemon):
    return daemon.wait(daemon.call("rollback", service="chat")["id"], ("Canceled", "Failed", "Succeeded"))


# --- parked ------------------------------------------------------------------------------------------------------


def test_the_old_model_is_parked_for_an_in_place_swap_and_woken_for_the_way_back(gpus):
    with gpus.daemon([gpus.model("a", "Parks"), gpus.model("big", holds=16)]) as daemon, Crowd(daemon.port) as crowd:
        pid = daemon.get()[2]["pid"]
        planned = daemon.call("plan", service="chat", to="big")
        assert (planned["strategy"], planned["rollback"], planned["rollback_s"]) == ("in-place", "parked", None)
        record = daemon.swap("big")
        crowd.more(30)
        assert (record["phase"], record["strategy"], record["kept"]) == ("Soaking", "in-place", "parked")
        assert " ".join(steps(record)) == "spawn hold drain park confirm load warm verify switch soak"
        assert used(daemon, "a") == GIB
        assert workers(daemon)["a"]["state"] == "parked"
        assert daemon.service()["rollback"] == "parked"

        crowd.mark()
        back = roll_back(daemon)
        crowd.more(30)
        assert back["phase"] == "Canceled"
        assert "restore: wake" in steps(back)
        assert back["return_outage_ms"] > 0
        assert daemon.get()[2]["pid"] == pid, "it was woken, not started again"
        assert used(daemon, "a") == 10 * GIB
        assert daemon.call("plan", service="chat", to="big")["rollback_s"] is not None
    crowd.check()
    assert gpus.hooks() == ["a import", "a load", "a park", "big import", "big load", "a wake"]


def test_a_model_that_says_of_itself_that_it_has_ended_is_not_waited_for(gpus):
    with gpus.daemon([gpus.model("a"), gpus.model("b", FAIL="load")]) as daemon:
        record = daemon.swap("b")
        assert (record["phase"], record["error"]["step"]) == ("Failed", "load"), record["error"]
        assert "I am not there." in record["error"]["message"]


def test_a_swap_to_what_the_soak_keeps_parked_is_the_return(gpus):
    with gpus.daemon([gpus.model("a", "Parks"), gpus.model("big", holds=16)]) as daemon:
        daemon.swap("big")
        planned = daemon.call("plan", service="chat", to="a")
        assert "is parked and is woken" in planned["why"]
        assert daemon.swap("a")["phase"] == "Canceled"
        assert daemon.model() == "a"
    assert gpus.hooks()[-1] == "a wake"


def test_a_parked_model_is_stopped_when_its_soak_ends(gpus):
    models = [gpus.model("a", "Parks"), gpus.model("big", holds=16)]
    with gpus.daemon(models, service='soak = "100ms"') as daemon:
        daemon.wait(daemon.swap("big")["id"], ("Succeeded",))
        until(lambda: list(workers(daemon)) == ["big"], what="a gone")
        assert daemon.service()["rollback"] == "cold"


def test_a_woken_model_needs_no_more_than_it_had(gpus):
    """What it kept while parked is its own, and not missing from what it needs."""
    with gpus.daemon([gpus.model("a", "Parks", holds=23), gpus.model("big", holds=16)]) as daemon:
        daemon.swap("big")
        assert roll_back(daemon)["phase"] == "Canceled"
        assert daemon.model() == "a"
    assert gpus.hooks()[-1] == "a wake"


def test_what_parking_would_not_make_room_for_is_stopped_at_once(gpus):
    """2 GiB are assumed to stay, so parking is no help, and clients do not wait while it is tried."""
    with gpus.daemon([gpus.model("a", "Parks"), gpus.model("big", holds=22)]) as daemon:
        planned = daemon.call("plan", service="chat", to="big")
        assert ("by stopping" in planned["why"], planned["rollback"]) == (True, "cold")
        record = daemon.swap("big")
        assert (record["phase"], record["kept"]) == ("Soaking", "stopped")
        assert steps(record, "failed") == []
    assert "a park" not in gpus.hooks()


def test_what_a_model_keeps_while_parked_is_measured_and_planned_with(gpus):
    models = [gpus.model("a", "Parks"), gpus.model("mid", holds=16), gpus.model("big", holds=22)]
    with gpus.daemon(models) as daemon:
        assert daemon.call("plan", service="chat", to="big")["rollback"] == "cold"
        daemon.swap("mid")
        roll_back(daemon)
        planned = daemon.call("plan", service="chat", to="big")
        assert ("(frees 9.0 GiB)" in planned["why"], planned["rollback"]) == (True, "parked")
        assert daemon.swap("big")["kept"] == "parked"


def test_a_model_that_can_park_but_not_wake_is_stopped(gpus):
    with gpus.daemon([gpus.model("a", "ParksForGood"), gpus.model("big", holds=16)]) as daemon:
        assert daemon.call("plan", service="chat", to="big")["rollback"] == "cold"
        assert daemon.swap("big")["kept"] == "stopped"


def test_parking_that_frees_too_little_ends_in_stopping(gpus):
    models = [gpus.model("a", "Parks", KEEP_GIB=9), gpus.model("big", holds=16)]
    with gpus.daemon(models) as daemon, Crowd(daemon.port) as crowd:
        record = daemon.swap("big")
        crowd.more(30)
        assert (record["phase"], record["kept"]) == ("Soaking", "stopped")
        assert steps(record, "failed") == ["confirm"]
        assert list(workers(daemon)) == ["big"]
        assert daemon.service()["rollback"] == "cold"
        crowd.mark()
        daemon.swap("a")
        assert daemon.call("plan", service="chat", to="big")["rollback"] == "cold", "it is not tried in vain again"
    crowd.check()
    assert gpus.hooks() == ["a import", "a load", "a park", "big import", "big load", "a import", "a load"]


def test_a_park_hook_that_fails_ends_in_stopping(gpus):
    models = [gpus.model("a", "Parks", FAIL="park"), gpus.model("big", holds=16)]
    with gpus.daemon(models) as daemon, Crowd(daemon.port) as crowd:
        record = daemon.swap("big")
        crowd.more(30)
        assert (record["phase"], record["kept"]) == ("Soaking", "stopped")
        failed = next(s for s in record["steps"] if s["status"] == "failed")
        assert (failed["name"], "the allocator is busy" in failed["detail"]) == ("park", True)
        assert daemon.model() == "big"
    crowd.check()


def test_a_candidate_that_fails_after_the_old_model_was_parked_wakes_it(gpus):
    models = [gpus.model("a", "Parks"), gpus.model("bad", holds=16, FAIL="probe")]
    with gpus.daemon(models) as daemon, Crowd(daemon.port) as crowd:
        pid = daemon.get()[2]["pid"]
        record = daemon.swap("bad")
        assert (record["phase"], record["error"]["code"]) == ("Failed", "PROBE_FAILED")
        crowd.more(30)
        assert daemon.get()[2]["pid"] == pid
    crowd.check()
    assert {m for *_, m in crowd.answers} == {"a"}
    assert gpus.hooks()[-1] == "a wake"


def test_a_wake_that_fails_on_the_way_back_is_made_good_by_a_fresh_start(gpus):
    models = [gpus.model("a", "Parks", FAIL="wake"), gpus.model("big", holds=16)]
    with gpus.daemon(models) as daemon, Crowd(daemon.port) as crowd:
        daemon.swap("big")
        crowd.mark()
        back = roll_back(daemon)
        assert (back["phase"], steps(back, "failed")) == ("Canceled", ["restore: wake"])
        daemon.wait_healthy()
        crowd.more(30)
        assert daemon.model() == "a"
        assert list(workers(daemon)) == ["a"]
    crowd.check()
    assert gpus.hooks()[-3:] == ["a wake", "a import", "a load"]


def test_a_parked_worker_that_dies_in_its_soak_is_not_missed_until_the_way_back(gpus):
    with gpus.daemon([gpus.model("a", "Parks"), gpus.model("big", holds=16)]) as daemon:
        record = daemon.swap("big")
        os.kill(workers(daemon)["a"]["pid"], signal.SIGKILL)
        until(lambda: list(workers(daemon)) == ["big"], what="a gone")
        record = daemon.call("show", id=record["id"])
        assert (record["phase"], record["kept"]) == ("Soaking", "stopped")
        assert (daemon.service()["rollback"], daemon.service()["health"]) == ("cold", "Healthy")
        assert daemon.model() == "big"
        back = daemon.wait(daemon.call("rollback", service="chat")["id"])
        assert (back["to"]["model"], back["phase"]) == ("a", "Soaking")


def test_a_candidate_that_dies_in_its_soak_wakes_the_parked_model(gpus):
    models = [gpus.model("a", "Parks"), gpus.model("big", holds=16)]
    with gpus.daemon(models) as daemon:
        record = daemon.swap("big")
        os.kill(workers(daemon)["big"]["pid"], signal.SIGKILL)
        assert daemon.model() == "a"
        assert "during the soak" in daemon.wait(record["id"], ("Failed",))["reason"]
    assert gpus.hooks()[-1] == "a wake"


# --- staged ------------------------------------------------------------------------------------------------------


def test_a_candidate_that_declares_it_is_staged_while_the_old_model_serves(gpus):
    models = [gpus.model("a"), gpus.model("big", "Stages", holds=16, extra=STAGE)]
    with gpus.daemon(models) as daemon, Crowd(daemon.port) as crowd:
        record = daemon.swap("big")
        crowd.more(30)
        assert record["strategy"] == "in-place"
        assert " ".join(steps(record)) == "spawn stage hold drain stop confirm load warm verify switch soak"
    crowd.check()
    assert gpus.hooks() == ["a import", "a load", "big import", "big stage", "big load"]


def test_a_stage_hook_that_takes_the_gpu_is_ended_before_the_old_model_notices(gpus):
    """It is promised nothing there, and the old model's next allocation may be the one that fails."""
    models = [gpus.model("a"), gpus.model("big", "StagesOnTheGpu", holds=16, extra=STAGE, STAGED_GIB="13.9")]
    with gpus.daemon(models) as daemon, Crowd(daemon.port) as crowd:
        record = daemon.swap("big")
        crowd.more(30)
        assert (record["phase"], record["error"]["code"]) == ("Failed", "GUARD_KILLED")
        assert "`stage` hook must need no memory of the device" in record["error"]["message"]
        assert " ".join(steps(record)) == "spawn stage"
    crowd.check()


def test_a_candidate_that_does_not_declare_it_is_not_imported_before_its_memory_is_free(gpus):
    """A process that keeps the memory which the old model gave back keeps the candidate's code from running at all."""
    models = [gpus.model("a"), gpus.model("big", "Stages", holds=16)]
    with gpus.daemon(models) as daemon, subprocess.Popen(["sleep", "600"]) as other:
        try:
            until(lambda: gpus.hooks() == ["a import", "a load"], what="a loaded")
            gpus.hold(other.pid, 4)
            swap = daemon.call("swap", service="chat", to="big")
            until(lambda: "hold" in steps(daemon.call("show", id=swap["id"])), what="the hold")
            gpus.hold(other.pid, 12)
            record = daemon.wait(swap["id"])
        finally:
            other.kill()
        assert (record["phase"], record["error"]["code"]) == ("Failed", "MEMORY_NOT_RELEASED")
        daemon.wait_healthy()
        assert daemon.model() == "a"
    assert not [hook for hook in gpus.hooks() if hook.startswith("big")]
