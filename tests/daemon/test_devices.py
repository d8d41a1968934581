"""Devices as the daemon watches them: what is the matter is told once, when it begins and when it ends."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pynvml
from support import fake_nvml
from support.fake_nvml import Gpu

from swapd.core.config import DeviceConfig
from swapd.core.model import DeviceKind, DeviceState, Kind, Reservation, Service, ServiceSettings, Slot, State, Worker
from swapd.core.states import WorkerState
from swapd.daemon.devices import Devices
from swapd.host.nvml import Nvml


async def no_pids():
    return {}


class Watched:
    def __init__(self, *gpus):
        self.library = fake_nvml.Library(pynvml, *gpus)
        self.told = []
        self.heard = asyncio.Event()
        configs = {
            f"gpu{n}": DeviceConfig(name=f"gpu{n}", kind=DeviceKind.NVML, match=gpu.uuid) for n, gpu in enumerate(gpus)
        }
        workers = SimpleNamespace(pids=no_pids)
        self.devices = Devices(configs, workers, State, self.publish, watch_s=0.01)
        self.devices._nvml = Nvml(library=self.library, deadline_s=30)

    def publish(self, event, body):
        self.told.append((event, body["device"], body["before"], body["state"]))
        self.heard.set()

    async def hear(self):
        await asyncio.wait_for(self.heard.wait(), 30)
        self.heard.clear()


def test_what_becomes_of_a_gpu_is_told_though_nobody_asks():
    async def scenario():
        well, ill = Gpu("GPU-0"), Gpu("GPU-1")
        watched = Watched(well, ill)
        await watched.devices.start()
        watching = asyncio.create_task(watched.devices.watch())
        ill.error = pynvml.NVML_ERROR_GPU_IS_LOST
        await watched.hear()
        [trouble] = watched.devices.troubles(["gpu0", "gpu1"])
        ill.error = None
        await watched.hear()
        assert watched.devices.troubles(["gpu0", "gpu1"]) == []
        watching.cancel()
        await watched.devices.close()
        return watched.told, trouble

    told, trouble = asyncio.run(scenario())
    assert told == [("device.changed", "gpu1", "ok", "lost"), ("device.changed", "gpu1", "lost", "ok")]
    assert (trouble["device"], trouble["state"]) == ("gpu1", "lost")
    assert "reset it or reboot" in trouble["trouble"]


def test_a_gpu_that_is_well_from_the_start_is_not_worth_an_event():
    async def scenario():
        watched = Watched(Gpu("GPU-0"))
        for _ in range(3):
            await watched.devices.read_all()
        return watched.told

    assert asyncio.run(scenario()) == []


def test_who_asks_while_a_reading_is_under_way_shares_the_next_one():
    async def scenario():
        gate, first, began = asyncio.Event(), asyncio.Event(), []

        async def pids():
            began.append(len(began))
            first.set()
            await gate.wait()
            return {}

        watched = Watched(Gpu("GPU-0"))
        watched.devices._workers.pids = pids
        readers = [asyncio.create_task(watched.devices.read(["gpu0"]))]
        await asyncio.wait_for(first.wait(), 30)
        readers += [asyncio.create_task(watched.devices.read(["gpu0"])) for _ in range(9)]
        readers[3].cancel()  # who gives up does not take it from the others
        gate.set()
        found = await asyncio.gather(*readers, return_exceptions=True)
        await watched.devices.close()
        return began, found

    began, found = asyncio.run(scenario())
    assert len(began) == 2
    assert isinstance(found.pop(3), asyncio.CancelledError)
    assert [reading.name for [reading] in found] == ["gpu0"] * 9


def test_a_worker_that_ends_is_counted_where_it_was_promised_room_whatever_its_revision_has_now():
    """The try in its place stands elsewhere, and the first one has not let go yet."""
    service = Service("chat", ServiceSettings(), "b", slots=((2, Slot("there", 5)),))
    ending = Worker("chat-2", "chat", Kind.DIRECT, 2, WorkerState.STOPPING)
    staged = replace(ending, id="chat-3", state=WorkerState.STAGED)
    kept = Reservation("return of chat", "chat", "there", 5)
    state = State((service,), (ending, staged), (Reservation("chat-2", "chat", "here", 5), kept))
    devices = Devices({}, SimpleNamespace(pids=no_pids), lambda: state, lambda event, body: None)
    assert devices._placed() == {"chat-2": ("here",), "chat-3": ("there",)}


def test_quick_looks_at_once_are_one_look():
    async def scenario():
        gate, looks = asyncio.Event(), []

        async def look(config, enough_bytes):
            looks.append(config.name)
            await gate.wait()
            return 5

        watched = Watched(Gpu("GPU-0"))
        watched.devices._look = look
        asked = [asyncio.create_task(watched.devices.free_at_least("gpu0", 1)) for _ in range(9)]
        await asyncio.sleep(0)
        asked[0].cancel()  # who gives up does not take it from the others
        gate.set()
        found = await asyncio.gather(*asked, return_exceptions=True)
        await watched.devices.close()
        return looks, found

    looks, found = asyncio.run(scenario())
    assert looks == ["gpu0"]
    assert isinstance(found[0], asyncio.CancelledError)
    assert found[1:] == [5] * 8


def test_a_device_that_a_reload_takes_away_while_it_is_read_is_read():
    async def scenario():
        watched = Watched(Gpu("GPU-0"), Gpu("GPU-1"))

        async def reloads():
            watched.devices.configure({})
            return {}

        watched.devices._workers.pids = reloads
        return await watched.devices.read_all()

    assert [reading.name for reading in asyncio.run(scenario())] == ["gpu0", "gpu1"]


def test_of_two_names_of_one_gpu_only_the_first_is_planned_on():
    """By index and by UUID: each would have been promised to the last byte, and their loads counted the same memory."""

    async def scenario():
        watched = Watched(Gpu("GPU-0"), Gpu("GPU-1"))
        by_index = DeviceConfig(name="card", kind=DeviceKind.NVML, match="1")
        watched.devices.configure({**watched.devices._configs, "card": by_index})
        [twin] = await watched.devices.read(("card",))
        [first] = await watched.devices.read(("gpu1",))
        await watched.devices.close()
        return twin, first

    twin, first = asyncio.run(scenario())
    assert (twin.known, twin.state) == (False, DeviceState.FAILED)
    assert twin.trouble == "it is the same GPU as gpu1: leave one of them out"
    assert first.known
