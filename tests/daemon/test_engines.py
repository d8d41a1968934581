"""Servers of other makes through the daemon's own hands: spawned, loaded, asked at their address, stopped."""

import asyncio
import json
import os
import pwd
import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.config_tables import parsed

from swapd.core.errors import LOAD_FAILED, NOT_READY, SwapdError
from swapd.core.model import DeviceKind, DeviceReading, Kind, Op, OpKind, Worker
from swapd.core.states import WorkerState
from swapd.daemon.executor import Executor
from swapd.daemon.workers import Workers
from swapd.host import probes

STAND_IN = Path(__file__).parents[1] / "support/servers/stand_in.py"
SYSTEM_PYTHON = shutil.which("python3", path=os.defpath)
GIB = 1 << 30
GPU = DeviceReading("gpu0", DeviceKind.NVML, 0, 80 * GIB, 80 * GIB, uuid="GPU-8f", index=1)


class World:
    """The daemon's workers over one model, and the executor's way to load one."""

    def __init__(self, directory, **model):
        tables = {
            "daemon": {"runtime_dir": f"{directory}/r", "state_dir": f"{directory}/s"},
            "models": {"a": {"directory": "/", **model}},
            "services": {"chat": {"listen": "127.0.0.1:8000", "model": "a"}},
        }
        self.config = parsed(tables)
        self.model = self.config.models["a"]
        self.ended = asyncio.Queue()  # how each worker ended
        self.workers = Workers(
            self.config,
            on_exit=lambda worker, problem, lines: self.ended.put_nowait(problem.details["exit"]),
            on_event=lambda *_: None,
            clock=lambda: 0.0,
        )
        self.times = []
        knowledge = SimpleNamespace(
            model_of=lambda *_: self.model, learn_time=lambda model, step, seconds: self.times.append(step)
        )
        self.worker = Worker("chat-1", "chat", Kind.ENGINE, 1, WorkerState.SPAWNED)
        self.executor = Executor(self.config, self.workers, None, knowledge, {}, lambda *_: None, lambda: None)
        self.executor.loop = SimpleNamespace(state=SimpleNamespace(worker=lambda _: self.worker))

    async def spawn(self, reading=None):
        await self.workers.spawn(
            self.worker, self.config.services["chat"], self.model, [reading] if reading is not None else []
        )
        return self.workers.live["chat-1"]

    async def load(self, reading=None):
        live = await self.spawn(reading)
        result = await self.executor._load(self.effect(OpKind.LOAD))
        return live, result

    def effect(self, kind):
        return SimpleNamespace(op=Op(1, kind, "chat", "chat-1"), slot=None)

    async def told(self, live):
        answer = await probes.fetch(live.address, "GET", "/", deadline_s=20.0)
        return json.loads(answer.body)


@pytest.fixture
def run(tmp_path_factory):
    directory = tmp_path_factory.getbasetemp() / "e"

    def run(test, **model):
        directory.mkdir(exist_ok=True)
        world = World(directory, **model)

        async def bounded():
            try:
                await asyncio.wait_for(test(world), 60.0)
            finally:
                for live in list(world.workers.live.values()):
                    await live.process.kill_tree(0.0)
                await world.workers.close()

        asyncio.run(bounded())

    return run


def stand_in(*arguments):
    return [sys.executable, str(STAND_IN), *arguments]


def test_a_command_is_loaded_asked_at_its_address_and_stopped(run):
    async def test(world):
        live, result = await world.load(GPU)
        assert result["hooks"] == []
        assert live.address == result["address"] == f"unix:{live.directory}/engine/http.sock"
        told = await world.told(live)
        assert told["args"] == ["--uds", f"{live.directory}/engine/http.sock", "--device", "GPU-8f"]
        assert told["env"]["CUDA_VISIBLE_DEVICES"] == "GPU-8f"
        assert told["env"]["TOKEN"] == "t"
        assert told["cwd"] == "/"
        await world.workers.stop("chat-1", force=False)
        assert await world.ended.get() == "exit code 0"
        assert world.workers.live == {}
        assert not live.directory.exists()

    command = stand_in("--uds", "{socket}", "--device", "{device}")
    run(test, engine="command", command=command, env={"TOKEN": "t"})


def test_a_server_on_a_port_is_asked_there(run):
    async def test(world):
        live, _ = await world.load()
        assert live.address.startswith("127.0.0.1:")
        assert (await world.told(live))["args"] == ["--port", live.address.rpartition(":")[2]]
        assert os.listdir(f"{world.config.daemon.runtime_dir}/ports") == [live.address.rpartition(":")[2]]

    run(test, engine="command", command=stand_in("--port", "{port}"))


def test_a_server_that_answers_503_while_it_loads_is_loaded_when_it_is_ready(run):
    async def test(world):
        live, _ = await world.load()
        assert (await world.told(live))["asked"] == 5
        assert world.times == ["load"]  # the second one, of the whole, counts
        assert await world.executor._warm(world.effect(OpKind.WARM)) == {"detail": ""}

    # its own flags, as the preset adds them, are all that the stand-in gets
    run(test, engine="llama-server", command=stand_in("loading"), weights=str(STAND_IN))


def test_a_server_that_is_never_ready_is_given_up(run):
    async def test(world):
        with pytest.raises(SwapdError) as error:
            await world.load()
        assert (error.value.code, "GET /health did not answer 2xx" in error.value.message) == (NOT_READY, True)

    ready = {"timeout": "3s"}
    run(test, engine="llama-server", command=stand_in("never"), weights=str(STAND_IN), ready=ready)


def test_a_server_that_ends_at_once_says_so(run):
    async def test(world):
        with pytest.raises(SwapdError) as error:
            await world.load()
        assert error.value.code == LOAD_FAILED
        assert "ended before it accepted connections: exit code 7" in error.value.message

    run(test, engine="command", command=stand_in("--uds", "{socket}", "exits"))


def test_a_server_that_dies_later_is_told_by_how_it_died(run):
    async def test(world):
        live, _ = await world.load()
        with pytest.raises(SwapdError):
            await probes.fetch(live.address, "GET", "/die", deadline_s=20.0)
        assert await world.ended.get() == "killed by SIGSEGV"

    run(test, engine="command", command=stand_in("--uds", "{socket}"))


def test_a_vllm_gets_its_share_its_number_and_its_way_to_sleep(run):
    async def test(world):
        live, result = await world.load(GPU)
        assert result["hooks"] == ["park", "wake"]
        told = await world.told(live)
        assert told["args"][:2] == ["serve", str(STAND_IN)]
        flags = " ".join(told["args"][2:]).replace(str(live.directory), "DIR")
        assert flags == (
            "--uds DIR/engine/http.sock --served-model-name chat --shutdown-timeout 5 --enable-sleep-mode"
            " --gpu-memory-utilization 0.25"
        )
        env = told["env"]
        assert (env["CUDA_VISIBLE_DEVICES"], env["CUDA_DEVICE_ORDER"]) == ("1", "PCI_BUS_ID")
        assert env["VLLM_SERVER_DEV_MODE"] == "1"
        await live.request("park", deadline_s=10.0)
        assert (await world.told(live))["sleeping"] is True
        await live.request("wake", deadline_s=10.0)
        assert (await world.told(live))["sleeping"] is False

    model = {"engine": "vllm", "command": stand_in("serve"), "weights": str(STAND_IN), "sleep": True}
    run(test, **model, served_names="chat", device_memory="20GiB")


def test_a_server_that_needs_longer_to_stop_than_workers_have_gets_it(run):
    async def test(world):
        world.workers.config = parsed(
            {
                "daemon": {"runtime_dir": world.config.daemon.runtime_dir, "stop_timeout": "0.1s"},
                "models": {"a": {"app": "m:app"}},
                "services": {"chat": {"listen": "127.0.0.1:8000", "model": "a"}},
            }
        )
        live, _ = await world.load()
        await world.workers.stop("chat-1", force=False)
        assert await world.ended.get() == "exit code 0"
        with open(live.facts.log_path) as log:  # noqa: ASYNC230
            assert "worker.server_stop_timeout" in log.read()

    run(test, engine="command", command=stand_in("--uds", "{socket}", "deaf"), stop_timeout="1s")


@pytest.mark.skipif(os.geteuid() != 0 or SYSTEM_PYTHON is None, reason="needs root, and a Python for every user")
def test_a_server_with_a_user_of_its_own_gets_to_its_socket_and_nowhere_else():
    with tempfile.TemporaryDirectory(prefix="swu", dir="/tmp") as name:
        directory = Path(name)
        directory.chmod(0o711)
        program = directory / "stand_in.py"
        shutil.copy(STAND_IN, program)
        program.chmod(0o644)
        command = [SYSTEM_PYTHON, str(program), "--uds", "{socket}"]

        async def test():
            world = World(directory, engine="command", command=command, user="nobody")
            try:
                live, _ = await world.load()
                told = await world.told(live)
                nobody = pwd.getpwnam("nobody")
                assert (told["uid"], told["env"]["HOME"]) == (nobody.pw_uid, nobody.pw_dir)
                modes = [each.stat().st_mode & 0o777 for each in (live.directory, live.directory / "engine")]
                assert modes == [0o701, 0o700]
                assert all(each.stat().st_mode & 0o077 == 0 for each in live.directory.iterdir())
            finally:
                for live in list(world.workers.live.values()):
                    await live.process.kill_tree(0.0)
                await world.workers.close()

        asyncio.run(asyncio.wait_for(test(), 60.0))
