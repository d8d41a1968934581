"""What is measured on GPUs decides: dual or not, whose memory it is, and that unknown is never nothing.

The real daemon and real workers; only the memory of the GPUs is made up.
"""

import http.client
import os
import signal
import threading

import pytest
from support.daemon_host import Crowd, Refused, free_port, until
from support.gpu_host import GIB, Gpus


def services(daemon, **models):
    ports = {name: daemon.port if name == "chat" else free_port() for name in models}
    return "".join(f'[services.{n}]\nlisten = "127.0.0.1:{ports[n]}"\nmodel = "{m}"\n' for n, m in models.items())


def used(daemon):
    return {w["model"]: w["used_bytes"] for w in daemon.call("workers") if w["model"]}


def refusal(daemon, method="swap", **params):
    with pytest.raises(Refused) as caught:
        daemon.call(method, **{"service": "chat", **params})
    return caught.value


def test_a_dual_swap_when_both_fit_on_one_gpu_or_on_two(tmp_path):
    gpus = Gpus(tmp_path, 24, 24)
    models = [gpus.model("a"), gpus.model("b", holds=8), gpus.model("c", holds=16)]
    with gpus.daemon(models) as daemon, Crowd(daemon.port) as crowd:
        record = daemon.swap("b")
        crowd.more(30)
        assert (record["strategy"], record["kept"]) == ("dual", "resident")
        assert used(daemon) == {"a": 10 * GIB, "b": 8 * GIB}
        crowd.mark()
        record = daemon.swap("c", strategy="dual")
        crowd.more(30)
        assert record["phase"] == "Soaking"
        assert used(daemon)["c"] == 16 * GIB
    crowd.check()
    assert gpus.hooks(0) == ["a import", "a load", "b import", "b load"]
    assert gpus.hooks(1) == ["c import", "c load"], "each sees the GPU that it was given"


def test_a_model_spans_two_gpus_and_is_swapped_there_beside_and_in_place(tmp_path):
    gpus = Gpus(tmp_path, 24, 24, 4)
    spans = "gpus = 2"
    models = [gpus.model("a"), gpus.model("b", holds=8, extra=spans), gpus.model("c", holds=20, extra=spans)]
    with gpus.daemon(models) as daemon, Crowd(daemon.port) as crowd:
        assert daemon.call("plan", service="chat", to="b")["devices"] == ["gpu0", "gpu1"]
        record = daemon.swap("b")
        crowd.more(30)
        assert (record["strategy"], record["kept"]) == ("dual", "resident")
        [worker] = [w for w in daemon.call("workers") if w["model"] == "b"]
        assert (worker["devices"], worker["device"]) == (["gpu0", "gpu1"], "gpu0")
        assert (worker["used_bytes"], worker["reserved_bytes"]) == (8 * GIB, 8 * GIB)
        assert [d["reserved_bytes"] // GIB for d in daemon.call("devices")] == [18, 8, 0]
        crowd.mark()
        record = daemon.swap("c")
        crowd.more(30)
        assert (record["strategy"], record["phase"]) == ("in-place", "Soaking")
        assert [d["free_bytes"] // GIB for d in daemon.call("devices")] == [4, 4, 4]
        assert set(record["peak_memory_bytes"]) == {"gpu0", "gpu1"}
        answer = refusal(daemon, "plan", to="a", strategy="dual")
        assert "a needs 10.0 GiB" in answer.message
        crowd.mark()
        assert daemon.swap("a", strategy="in-place")["phase"] == "Soaking"
        crowd.more(30)
    crowd.check()


def test_what_a_foreign_process_holds_is_counted_and_told(gpus, other):
    with gpus.daemon([gpus.model("a"), gpus.model("b", holds=8), gpus.model("big", holds=16)]) as daemon:
        gpus.hold(other.pid, 8)
        [device] = daemon.call("devices")
        assert (device["foreign"][0]["pid"], device["foreign"][0]["bytes"]) == (other.pid, 8 * GIB)
        assert device["available_bytes"] == int(5.5 * GIB)
        assert daemon.call("plan", service="chat", to="b")["strategy"] == "in-place"
        refused = refusal(daemon, to="big")
        assert (refused.code, "8.0 GiB is held outside swapd" in refused.message) == ("VRAM_INSUFFICIENT", True)
        assert daemon.model() == "a"
        other.kill()
        other.wait()
        assert daemon.swap("b")["strategy"] == "dual"


def test_a_gpu_whose_memory_cannot_be_read_is_not_planned_on_and_what_serves_there_goes_on(gpus):
    with gpus.daemon([gpus.model("a"), gpus.model("b", holds=8)]) as daemon:
        gpus.fail("NVML_ERROR_GPU_IS_LOST")
        [device] = daemon.call("devices")
        assert (device["total_bytes"], device["free_bytes"], device["available_bytes"]) == (None, None, None)
        assert device["state"] == "lost"
        [service] = daemon.call("status")["services"]
        assert [(t["device"], t["state"]) for t in service["device_troubles"]] == [("gpu0", "lost")]
        for method in ("plan", "swap"):
            refused = refusal(daemon, method, to="b")
            assert (refused.code, "the GPU is lost" in refused.message) == ("DEVICE_UNKNOWN", True)
        assert daemon.model() == "a"
        gpus.fail(None)
        assert daemon.swap("b")["strategy"] == "dual"
        told = [e for e in daemon.call("events_since", epoch=0, seq=0)["events"] if e["event"] == "device.changed"]
        assert [(e["device"], e["before"], e["state"]) for e in told] == [
            ("gpu0", "ok", "lost"),
            ("gpu0", "lost", "ok"),
        ]
    assert "b load" in gpus.hooks()


def test_nothing_is_loaded_while_the_memory_that_the_old_model_gave_back_cannot_be_read(gpus):
    with gpus.daemon([gpus.model("a"), gpus.model("big", holds=16)]) as daemon:
        connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
        connection.request("GET", "/stream?n=40&s=0.03")
        response = connection.getresponse()
        response.readline()
        swap = daemon.call("swap", service="chat", to="big")
        until(lambda: daemon.call("show", id=swap["id"])["steps"][-1]["name"] == "drain", what="the drain")
        gpus.fail("NVML_ERROR_GPU_IS_LOST")
        response.read()
        connection.close()
        record = daemon.wait(swap["id"])
        assert (record["phase"], record["error"]["code"]) == ("Failed", "DEVICE_UNKNOWN")
        assert record["error"]["step"] == "confirm"
        gpus.fail(None)
        assert daemon.model() == "a", "it returns once there is a figure again"
    assert [hook for hook in gpus.hooks() if hook.endswith("load")] == ["a load", "a load"]


def test_a_worker_is_not_started_while_it_is_not_known_which_gpu_it_gets(gpus):
    """Without one in its environment a model takes the CPU, and nobody is told."""
    with gpus.daemon([gpus.model("a")]) as daemon:
        gpus.fail("NVML_ERROR_GPU_IS_LOST")
        os.kill(daemon.get()[2]["pid"], signal.SIGKILL)
        problem = until(lambda: tried_again(daemon), what="another start")
        gpus.fail(None)
        assert daemon.model() == "a"
        assert used(daemon) == {"a": 10 * GIB}
    assert problem["code"] == "DEVICE_UNKNOWN"
    assert "the GPU is lost" in problem["message"]
    assert not (gpus.directory / "hooks").exists(), "a worker ran without a GPU"


def tried_again(daemon):
    """Why the second start did not begin; or that it did."""
    service = daemon.service()
    if any("confirm" in w["state"] for w in daemon.call("workers")):
        return {"code": "started"}
    return service["problem"] if service["failures"] > 1 else None


def test_a_need_that_nobody_declared_is_learned_from_the_first_run(gpus):
    with gpus.daemon([gpus.model("a"), gpus.model("b", holds=8, needs=0)]) as daemon:
        planned = daemon.call("plan", service="chat", to="b")
        assert (planned["need_bytes"], planned["strategy"]) == (None, "in-place")
        assert daemon.swap("b")["phase"] == "Soaking"
        assert daemon.swap("a", strategy="dual")["phase"] == "Soaking"
        daemon.swap("b", strategy="in-place")
        daemon.swap("a", strategy="dual")
        planned = daemon.call("plan", service="chat", to="b")
        assert planned["need_source"] == "learned"


def test_two_services_never_both_count_the_same_free_bytes(gpus):
    daemon = gpus.daemon([])
    models = [gpus.model("a", holds=4), gpus.model("b", holds=10, LOAD_S=0.5), gpus.model("c", holds=10, LOAD_S=0.5)]
    daemon.write(models, services=services(daemon, chat="a", embed="a"), daemon='release_timeout = "1s"')
    with daemon:
        daemon.wait_healthy("embed")
        begin = threading.Barrier(2)
        results = {}

        def swap(service, model):
            begin.wait(30)
            try:
                results[service] = daemon.call("swap", service=service, to=model, strategy="dual")["id"]
            except Refused as error:
                results[service] = error.code

        threads = [threading.Thread(target=swap, args=pair) for pair in (("chat", "b"), ("embed", "c"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        [number] = [r for r in results.values() if r != "VRAM_INSUFFICIENT"]
        assert daemon.wait(number)["phase"] == "Soaking", results
        assert sum(used(daemon).values()) <= 24 * GIB


def test_two_services_that_do_not_fit_together_are_not_started_together(gpus):
    daemon = gpus.daemon([])
    models = [gpus.model("a", holds=14), gpus.model("b", holds=14)]
    daemon.write(models, services=services(daemon, chat="a", embed="b"))
    try:
        daemon.start(healthy=False)
        health = lambda: {n: daemon.service(n)["health"] for n in ("chat", "embed")}  # noqa: E731
        until(lambda: sorted(health().values()) == ["Healthy", "Unavailable"], what="one of the two")
        [waiting] = [n for n, h in health().items() if h == "Unavailable"]
        assert daemon.service(waiting)["problem"]["code"] == "VRAM_INSUFFICIENT"
    finally:
        daemon.__exit__()
    assert [h.split()[1] for h in gpus.hooks()] == ["import", "load"], "only one was ever begun"


def test_what_a_parked_model_needs_to_come_back_is_not_given_to_another_service(gpus):
    daemon = gpus.daemon([])
    models = [gpus.model("a", "Parks", holds=14), gpus.model("b", holds=5), gpus.model("c", holds=4)]
    daemon.write([*models, gpus.model("d", holds=10)], services=services(daemon, chat="a", embed="c"))
    with daemon:
        daemon.wait_healthy("embed")
        assert daemon.swap("b", strategy="in-place")["kept"] == "parked"
        refused = refusal(daemon, service="embed", to="d", strategy="dual")
        assert refused.code == "VRAM_INSUFFICIENT"
        back = daemon.wait(daemon.call("rollback", service="chat")["id"], ("Canceled",))
        assert back["return_outage_ms"] > 0
        assert daemon.model() == "a"
    assert "a wake" in gpus.hooks()
