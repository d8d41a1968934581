"""Memory that is given back late, or not, is measured before anything loads into it, and told with who holds it."""

import asyncio
import threading
from types import SimpleNamespace

import pytest
from support.daemon_host import until
from support.gpu_host import GIB

from swapd.core.errors import WORKER_EXITED, SwapdError
from swapd.core.model import DeviceKind, DeviceReading, Kind, Op, OpKind, Reservation, Slot, State, Worker
from swapd.core.states import WorkerState
from swapd.daemon.release import Release


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


def test_for_a_worker_that_has_ended_meanwhile_nobody_looks_any_more():
    """Its limit may be a minute away, and each look holds up who serves; what it told would be of another's release."""
    worker = Worker("chat-2", "chat", Kind.DIRECT, 2, WorkerState.SPAWNED)
    full = DeviceReading("gpu0", DeviceKind.NVML, 0, 24 * GIB, GIB)
    known = State(workers=(worker,), reservations=(Reservation("chat-2", "chat", "gpu0", 8 * GIB),))
    states = [known, known, State()]

    async def read(devices):
        if len(states) > 1:
            states.pop(0)
        return [full]

    async def scenario():
        release = Release(lambda: states[0], SimpleNamespace(read=read), SimpleNamespace())
        await asyncio.wait_for(release.confirm(Op(1, OpKind.CONFIRM, "chat", "chat-2"), Slot("gpu0", 0), 60.0), 20)

    with pytest.raises(SwapdError) as error:
        asyncio.run(scenario())
    assert error.value.code == WORKER_EXITED
