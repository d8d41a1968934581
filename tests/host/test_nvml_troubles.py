"""Every trouble that a GPU can be in has a state of its own, as NVML really words it. Only the module is faked."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from types import SimpleNamespace

import psutil
import pynvml
import pytest
from support import fake_nvml
from support.fake_nvml import GIB, Gpu

from swapd.core.device_states import is_integrated
from swapd.core.model import DeviceState
from swapd.host.nvml import MAX_FOREIGN, Nvml
from swapd.host.nvml.health import MEMORY_HEALTH_FOR_S
from swapd.host.nvml.readings import AFRESH_S

Library = partial(fake_nvml.Library, pynvml)


def device(match="0", memory_bytes=None):
    return SimpleNamespace(name="gpu0", match=match, headroom_bytes=7, memory_bytes=memory_bytes)


async def read_all(nvml, *devices, workers=None):
    return await nvml.read_all(list(devices), workers or {})


def read(library, *, memory_bytes=None, match="0", workers=None):
    nvml = Nvml(library=library, deadline_s=30)
    [reading] = asyncio.run(read_all(nvml, device(match, memory_bytes), workers=workers))
    return reading


ERRORS = {
    "NVML_ERROR_GPU_IS_LOST": DeviceState.LOST,
    "NVML_ERROR_RESET_REQUIRED": DeviceState.RESET_REQUIRED,
    "NVML_ERROR_NO_PERMISSION": DeviceState.NOT_PERMITTED,
    "NVML_ERROR_NOT_FOUND": DeviceState.NOT_FOUND,
    "NVML_ERROR_UNKNOWN": DeviceState.FAILED,
    "NVML_ERROR_IRQ_ISSUE": DeviceState.FAILED,
}


@pytest.mark.parametrize(("error", "state"), ERRORS.items())
def test_an_error_about_a_gpu_is_a_state_of_it(error, state):
    reading = read(Library(Gpu("GPU-0", error=getattr(pynvml, error))))
    assert (reading.known, reading.state) == (False, state)
    assert reading.trouble == reading.detail
    assert not reading.holders_known


@pytest.mark.parametrize(
    ("error", "state"),
    [
        ("NVML_ERROR_LIBRARY_NOT_FOUND", DeviceState.NO_DRIVER),
        ("NVML_ERROR_DRIVER_NOT_LOADED", DeviceState.NO_DRIVER),
        ("NVML_ERROR_LIB_RM_VERSION_MISMATCH", DeviceState.DRIVER_MISMATCH),
    ],
)
def test_an_error_of_the_driver_is_a_state_of_every_gpu(error, state):
    library = Library(Gpu("GPU-0"), Gpu("GPU-1"))
    library.init_error = getattr(pynvml, error)
    readings = asyncio.run(read_all(Nvml(library=library), device("0"), device("1")))
    assert [(r.known, r.state) for r in readings] == [(False, state)] * 2


def test_a_gpu_that_nothing_is_the_matter_with_says_so():
    reading = read(Library(Gpu("GPU-0", ecc=0, remapped=(1, 0, 0, 0))))
    assert (reading.state, reading.trouble, reading.holders_known) == (DeviceState.OK, "", True)


def test_a_driver_that_hangs_is_a_state():
    library = Library(Gpu("GPU-0"))
    library.answer.clear()
    nvml = Nvml(library=library, deadline_s=0.05)
    [reading] = asyncio.run(read_all(nvml, device()))
    library.answer.set()
    assert (reading.known, reading.state) == (False, DeviceState.NO_ANSWER)


def test_a_divided_gpu_and_one_that_is_not_named_have_states():
    divided = Library(Gpu("GPU-0", slices=[Gpu("MIG-0")]))
    assert read(divided).state is DeviceState.DIVIDED
    assert read(Library(Gpu("GPU-0")), match=None).state is DeviceState.NOT_FOUND


@pytest.mark.parametrize(
    ("gpu", "words"),
    [
        (Gpu("GPU-0", ecc=1), "1 uncorrectable memory error since the driver was loaded"),
        (Gpu("GPU-0", ecc=3, remapped=(0, 1, 1, 0)), "replaced by spare ones at its next reset"),
        (Gpu("GPU-0", remapped=(0, 9, 1, 1)), "have the GPU replaced"),
    ],
)
def test_uncorrectable_memory_errors_are_told_of_a_gpu_that_is_planned_on(gpu, words):
    reading = read(Library(gpu))
    assert (reading.known, reading.state) == (True, DeviceState.MEMORY_ERRORS)
    assert words in reading.trouble
    assert words in reading.detail


def test_memory_errors_are_not_asked_for_at_every_reading(monkeypatch):
    gpu = Gpu("GPU-0", ecc=0)
    library = Library(gpu)
    asked, ask = [], library.nvmlDeviceGetTotalEccErrors
    library.nvmlDeviceGetTotalEccErrors = lambda *args: asked.append(args) or ask(*args)
    nvml = Nvml(library=library, deadline_s=30)

    async def scenario():
        for _ in range(20):
            await read_all(nvml, device())
        gpu.ecc = 1
        clock = time.monotonic() + MEMORY_HEALTH_FOR_S
        monkeypatch.setattr(time, "monotonic", lambda: clock)
        return await read_all(nvml, device())

    [reading] = asyncio.run(scenario())
    assert reading.state is DeviceState.MEMORY_ERRORS
    assert len(asked) == 2


def test_an_xid_error_of_the_gpu_itself_stays_told_and_one_of_an_application_is_not():
    healthy, ill = Gpu("GPU-0"), Gpu("GPU-1")
    nvml = Nvml(library=Library(healthy, ill), deadline_s=30)

    async def scenario():
        states = [[r.state for r in await read_all(nvml, device("0"), device("1"))]]
        healthy.xids += [13, 31, 94]
        ill.xids += [48, 43]
        states += [[r.state for r in await read_all(nvml, device("0"), device("1"))] for _ in range(2)]
        return states, (await read_all(nvml, device("1")))[0]

    states, reading = asyncio.run(scenario())
    fine, told = DeviceState.OK, DeviceState.XID
    assert states == [[fine, fine], [fine, told], [fine, told]]
    assert reading.known
    assert "Xid 48, a double-bit memory error" in reading.trouble


def test_a_lost_gpu_does_not_have_the_errors_of_others_forgotten(monkeypatch):
    """NVML is initialised afresh for it, and not at every reading."""
    before, lost, after = Gpu("GPU-0"), Gpu("GPU-1"), Gpu("GPU-2")
    library = Library(before, lost, after)
    nvml = Nvml(library=library, deadline_s=30)

    devices = [SimpleNamespace(**vars(device(str(n))) | {"name": f"gpu{n}"}) for n in range(3)]

    async def states():
        return [r.state.value for r in await read_all(nvml, *devices)]

    async def scenario():
        lost.xids.append(79)
        assert await states() == ["ok", "xid", "ok"]
        lost.error = pynvml.NVML_ERROR_GPU_IS_LOST
        assert await states() == ["ok", "lost", "ok"]
        calls = library.calls
        before.xids.append(48)
        after.xids.append(48)
        await states()
        assert [await states() for _ in range(2)] == [["xid", "lost", "xid"]] * 2
        assert library.calls == calls
        clock = time.monotonic() + AFRESH_S
        monkeypatch.setattr(time, "monotonic", lambda: clock)
        lost.error = None
        return await states(), await states()

    assert asyncio.run(scenario()) == (["xid", "ok", "xid"],) * 2


def test_a_slice_has_the_troubles_of_its_card():
    card = Gpu("GPU-0", ecc=2, slices=[Gpu("MIG-0", total=10 * GIB, free=9 * GIB)])
    reading = read(Library(card), match="MIG-0")
    assert (reading.total_bytes, reading.state) == (10 * GIB, DeviceState.MEMORY_ERRORS)


def test_a_gpu_known_to_share_the_hosts_memory_has_what_the_host_has_available():
    shared = Gpu("GPU-0", product="NVIDIA GB10", memory_error=pynvml.NVML_ERROR_NOT_SUPPORTED)
    shared.memory_v2_error = pynvml.NVML_ERROR_NOT_SUPPORTED
    reading = read(Library(shared))
    host = psutil.virtual_memory()
    assert (reading.state, reading.total_bytes) == (DeviceState.OK, host.total)
    assert 0 < reading.free_bytes <= host.total
    assert read(Library(shared), memory_bytes=GIB).total_bytes == GIB


@pytest.mark.parametrize("error", ["NVML_ERROR_NOT_SUPPORTED", "NVML_ERROR_NO_PERMISSION"])
def test_memory_that_is_not_told_may_be_said(error):
    gpu = Gpu("GPU-0", product="NVIDIA X", memory_error=getattr(pynvml, error))
    reading = read(Library(gpu))
    assert (reading.known, reading.state is DeviceState.OK) == (False, False)
    said = read(Library(gpu), memory_bytes=16 * GIB)
    assert (said.state, said.total_bytes, said.uuid) == (DeviceState.UNMEASURED, 16 * GIB, "GPU-0")
    assert "what is promised is counted against memory = 16.0 GiB" in said.trouble


@pytest.mark.parametrize("error", ["NVML_ERROR_GPU_IS_LOST", "NVML_ERROR_UNKNOWN", "NVML_ERROR_RESET_REQUIRED"])
def test_what_is_said_of_a_gpu_in_trouble_does_not_count(error):
    gpu = Gpu("GPU-0", product="NVIDIA GB10", error=getattr(pynvml, error))
    assert not read(Library(gpu), memory_bytes=16 * GIB).known
    gpu = Gpu("GPU-0", product="NVIDIA GB10", memory_error=getattr(pynvml, error))
    assert not read(Library(gpu), memory_bytes=16 * GIB).known


@pytest.mark.parametrize(
    ("product", "shares"),
    [
        ("NVIDIA GB10", True),
        ("Orin (nvgpu)", True),
        ("NVIDIA Jetson AGX Thor", True),
        ("NVIDIA GB100", False),
        ("NVIDIA H200", False),
        ("NVIDIA GB200", False),
    ],
)
def test_which_gpus_share_the_hosts_memory(product, shares):
    assert is_integrated(product) is shares


def test_a_container_without_process_data_leaves_memory_known_and_says_who_is_not():
    gpu = Gpu("GPU-0", compute=pynvml.NVML_ERROR_NO_PERMISSION)
    reading = read(Library(gpu), workers={"chat-1": {1}})
    assert (reading.known, reading.state, reading.holders_known) == (True, DeviceState.OK, False)
    assert reading.used_by == (("chat-1", None),)


def test_of_many_foreign_processes_those_that_hold_most_are_named():
    gpu = Gpu("GPU-0", compute=[(1000 + n, n * GIB // 8) for n in range(40)])
    reading = read(Library(gpu))
    assert [pid for pid, _, _ in reading.foreign] == [1039 - n for n in range(MAX_FOREIGN)]
