"""Memory that is given back late, or not, is measured before anything loads into it, and told with who holds it."""

import threading

from support.daemon_host import until
from support.gpu_host import GIB


def confirmed(record):
    return next(s for s in record["steps"] if s["name"] == "confirm")


def leaving(gpus, other, gib):
    return gpus.model("a", "Leaves", LEAVES=f"{other.pid}:{gib}")


def test_what_did_not_come_back_is_told_also_where_the_rest_is_enough(gpus, other):
    with gpus.daemon([leaving(gpus, other, 5), gpus.model("big", holds=16)]) as daemon:
        record = daemon.swap("big")
        assert record["phase"] == "Soaking", record["error"]
        detail = confirmed(record)["detail"]
        assert detail.startswith("19.0 GiB free; 5.0 GiB of what chat-"), detail
        assert f"held by process-{other.pid} (pid {other.pid}) 5.0 GiB" in detail


def test_a_load_is_not_begun_into_memory_that_does_not_come_back_and_says_who_holds_it(gpus, other):
    with gpus.daemon([leaving(gpus, other, 9), gpus.model("big", holds=16)]) as daemon:
        record = daemon.swap("big")
        assert (record["phase"], record["error"]["code"]) == ("Failed", "MEMORY_NOT_RELEASED")
        assert "9.0 GiB of what chat-" in record["error"]["message"]
        assert record["error"]["details"]["holders"][0]["pid"] == other.pid
        assert record["error"]["details"]["not_back_bytes"] == 9 * GIB
        assert not [hook for hook in gpus.hooks() if hook.startswith("big ")], "an import may take memory as well"
        assert daemon.model() == "a"


def test_memory_that_comes_back_late_is_waited_for(gpus, other):
    def come_back():
        until(lambda: (gpus.directory / "GPU-0" / "held" / str(other.pid)).exists(), what="the old model's end")
        until(lambda: any("confirm" in w["state"] for w in daemon.call("workers")), what="the wait for memory")
        other.kill()
        other.wait()

    models = [leaving(gpus, other, 9), gpus.model("big", holds=16)]
    with gpus.daemon(models, daemon='release_timeout = "20s"') as daemon:
        late = threading.Thread(target=come_back)
        late.start()
        record = daemon.swap("big")
        late.join(30)
        assert (record["phase"], record["strategy"]) == ("Soaking", "in-place"), record["error"]
        assert confirmed(record)["detail"] == "24.0 GiB free"
