"""A model that takes more than was planned while it loads beside another is killed, and the other never notices.

Real processes that really take memory, on the host's own with a budget.
"""

import asyncio
import os
from types import SimpleNamespace

import pytest
from support.daemon_host import Crowd, Daemon, Refused, model, server, until

from swapd.core.errors import GUARD_KILLED, WORKER_EXITED, Problem, SwapdError
from swapd.core.events import Run
from swapd.core.model import DeviceKind, DeviceReading, Op, OpKind, Reservation, Slot, State
from swapd.daemon.guard import Guard

MIB = 1 << 20
A = model("a", memory="150MiB", HOLD_MB="60")


def hungry(takes, memory="150MiB", **env):
    block = model("b", memory=memory, TAKES=takes, **env)
    return block.replace("model_app:app", "hungry_app:Hungry").replace('within = "1s"', 'within = "20s"')


def few(daemon):
    return Crowd(daemon.port, keep_alive=2, reconnecting=1, pause_s=0.01)


def gone(daemon):
    """Of the candidate that was killed nothing is left, whatever it has forked."""
    until(lambda: {w["model"] for w in daemon.call("workers") if w["model"]} == {"a"}, what="the candidate gone")
    marked = [pid for pid in filter(str.isdigit, os.listdir("/proc")) if b"TAKES=" in environment(pid)]
    assert not marked, f"left behind: {marked}"


def environment(pid):
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read()
    except OSError:
        return b""


@pytest.mark.parametrize("takes", ["load:2000", "fork:2000 wait:20", "probe:2000"])
def test_a_candidate_that_takes_too_much_is_killed_and_the_old_model_serves_on(takes):
    with (
        Daemon([A, hungry(takes)], budget="600MiB", service='max_outage = "0s"\ndrain_timeout = "1s"') as daemon,
        few(daemon) as crowd,
    ):
        record = daemon.swap("b")
        assert (record["phase"], record["strategy"], record["fell_back"]) == ("Failed", "dual", None)
        assert record["error"]["code"] == "GUARD_KILLED", record["error"]
        details = record["error"]["details"]
        assert details["used_bytes"] > details["reserved_bytes"] == 150 * MIB
        assert details["used_bytes"] < 1000 * MIB, "long before it had all that it wanted"
        gone(daemon)
        crowd.more(30)
        crowd.check()
        assert {m for *_, m in crowd.answers} == {"a"}
        with pytest.raises(Refused) as refused:
            daemon.call("plan", service="chat", to="b")
        assert refused.value.details["need_source"] == "learned"
        assert refused.value.details["need_bytes"] >= details["used_bytes"], "later readings teach too"


def test_what_was_too_much_beside_the_old_model_is_tried_once_in_its_place():
    with (
        Daemon([A, hungry("load:400 wait:3")], budget="450MiB", service='drain_timeout = "5s"') as daemon,
        few(daemon) as crowd,
    ):
        assert daemon.call("plan", service="chat", to="b")["strategy"] == "dual"
        record = daemon.swap("b")
        assert (record["phase"], record["strategy"]) == ("Soaking", "in-place"), record["error"]
        assert record["fell_back"]["code"] == "GUARD_KILLED"
        assert [s["name"] for s in record["steps"] if s["status"] == "failed"] == ["load"]
        crowd.more(30)
        crowd.check()
        assert daemon.model() == "b"


def test_a_model_that_finds_no_memory_itself_is_tried_once_in_place_and_then_the_old_one_is_back():
    with Daemon([A, model("b", FAIL="oom")], service='drain_timeout = "5s"') as daemon, few(daemon) as crowd:
        record = daemon.swap("b")
        assert (record["phase"], record["strategy"]) == ("Failed", "in-place")
        assert (record["fell_back"]["code"], record["error"]["code"]) == ("OUT_OF_MEMORY", "OUT_OF_MEMORY")
        assert len([s for s in record["steps"] if (s["name"], s["status"]) == ("load", "failed")]) == 2
        crowd.more(30)
        crowd.check()
        assert {m for *_, m in crowd.answers} == {"a"}


def test_a_model_that_takes_too_much_where_nobody_else_stands_is_let_be():
    with Daemon([A, hungry("load:400 wait:3")], budget="450MiB", service='drain_timeout = "5s"') as daemon:
        record = daemon.swap("b", strategy="in-place")
        assert record["phase"] == "Soaking", record["error"]


def test_a_server_that_says_so_in_its_log_has_run_out_of_memory():
    """It ends with an exit code like any other, and says why long before its last words."""
    said = "ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory"
    b = server("b", FAIL="exit", LEAK=said, CHATTER="6400")
    with Daemon([server("a"), b], service='drain_timeout = "1s"', patience_s=60) as daemon:
        record = daemon.swap("b")
        assert (record["fell_back"]["code"], record["error"]["code"]) == ("OUT_OF_MEMORY", "OUT_OF_MEMORY")
        assert said in record["error"]["message"]
        assert daemon.model() == "a"


def test_memory_that_had_run_out_before_a_server_was_ready_is_not_why_it_fails_later():
    """It has loaded all the same, with less: its wrong answer is no reason to have clients wait for a second try."""
    b = server("b", FAIL="probe", LEAK="cudaMalloc failed: out of memory, going on with a smaller batch")
    with Daemon([server("a"), b], service='drain_timeout = "1s"', patience_s=60) as daemon:
        record = daemon.swap("b")
        assert (record["phase"], record["strategy"], record["fell_back"]) == ("Failed", "dual", None)
        assert record["error"]["code"] == "PROBE_FAILED"
        assert any("out of memory" in line for line in record["error"]["log_tail"]), "for a person to see"


class Guarded:
    """A worker that holds more than it was promised, beside another; of its device so much is free."""

    def __init__(self, free_bytes, condemned=None):
        self.free_bytes = free_bytes
        self.live = SimpleNamespace(condemned=condemned)
        self.begun = asyncio.Event()
        self.killed = []
        self.devices = SimpleNamespace(
            floor_bytes=lambda device: 256 * MIB, free_at_least=self.free_at_least, read=self.read
        )
        workers = SimpleNamespace(live={"chat-2": self.live}, condemn=self.condemn)
        others = Reservation("chat-1", "chat", "gpu0", 3000 * MIB, settled=True)
        state = State(reservations=(others, Reservation("chat-2", "chat", "gpu0", 4000 * MIB)))
        self.guard = Guard(lambda: state, self.devices, workers)

    async def free_at_least(self, device, enough_bytes):
        return self.free_bytes

    async def read(self, devices):
        held = (("chat-2", 5000 * MIB),)
        return [DeviceReading("gpu0", DeviceKind.NVML, 512 * MIB, 8000 * MIB, self.free_bytes, held)]

    async def condemn(self, worker, problem):
        self.live.condemned = problem
        self.begun.set()
        await asyncio.sleep(0.05)
        self.killed.append(worker)

    async def fails_with(self, work):
        op = Op(1, OpKind.VERIFY, "chat", "chat-2")
        with pytest.raises(SwapdError) as error:
            await asyncio.wait_for(self.guard.beside(Run(op, Slot("gpu0", 4000 * MIB)), work), 30)
        return error.value.code


def test_a_worker_that_answers_well_while_it_is_being_killed_has_not_proved_itself():
    """Its last answer was on its way. Taken for good, the kill was given up and clients were sent to it, frozen."""

    async def scenario():
        guarded = Guarded(0)

        async def probes():
            await guarded.begun.wait()
            return {"detail": "1 answer"}

        return await guarded.fails_with(probes()), guarded.killed

    assert asyncio.run(scenario()) == (GUARD_KILLED, ["chat-2"])


def test_one_that_has_outlived_an_earlier_guard_is_not_waited_for():
    async def scenario():
        guarded = Guarded(1000 * MIB, condemned=Problem(GUARD_KILLED, "x"))

        async def gone():
            raise SwapdError(WORKER_EXITED, "its channel is closed")

        return await guarded.fails_with(gone()), guarded.killed

    assert asyncio.run(scenario()) == (GUARD_KILLED, [])


def test_a_guard_that_cannot_look_ends_nobody_and_looks_again():
    """By a bug of ours: what loads is not to blame."""

    async def scenario():
        guarded = Guarded(0)
        looks = []

        async def look(device, enough_bytes):
            looks.append(device)
            if len(looks) < 3:
                raise RuntimeError("a bug")
            return guarded.free_bytes

        guarded.devices.free_at_least = look
        return await guarded.fails_with(asyncio.Event().wait()), guarded.killed

    assert asyncio.run(scenario()) == (GUARD_KILLED, ["chat-2"])
