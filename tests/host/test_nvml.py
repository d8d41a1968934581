"""NVML's traps, each by name. Only the module pynvml is faked; its error classes and constants are the real ones."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from types import SimpleNamespace

import pynvml
import pytest
from support import fake_nvml
from support.fake_nvml import GIB, Gpu

from swapd.core.devices import SeenGpu, default_devices
from swapd.core.errors import DEVICE_UNKNOWN, SwapdError
from swapd.core.model import DeviceKind
from swapd.host.nvml import Nvml

NOT_AVAILABLE = (1 << 64) - 1


Library = partial(fake_nvml.Library, pynvml)


def device(match="0", name="gpu0", headroom=7):
    return SimpleNamespace(name=name, match=match, headroom_bytes=headroom, memory_bytes=None)


@pytest.fixture
def proc(tmp_path):
    """A /proc of the initial PID namespace."""
    (tmp_path / "self/ns").mkdir(parents=True)
    (tmp_path / "self/ns/pid").symlink_to("pid:[4026531836]")
    return tmp_path


@pytest.fixture
def read(proc):
    """One reading, by a fresh Nvml."""

    def of(library, workers=None, match="0"):
        nvml = Nvml(library=library, deadline_s=30, proc=proc)
        [reading] = asyncio.run(nvml.read_all([device(match)], workers or {}))
        return reading

    return of


def unknown(reading, *words):
    assert (reading.total_bytes, reading.free_bytes, reading.known) == (None, None, False)
    assert {used for _, used in reading.used_by} <= {None}
    for word in words:
        assert word in reading.detail
    return True


# --- memory ------------------------------------------------------------------------------------------------


def test_a_gpu_is_read(read):
    reading = read(Library(Gpu("GPU-1")))
    assert (reading.name, reading.kind, reading.headroom_bytes) == ("gpu0", DeviceKind.NVML, 7)
    assert (reading.total_bytes, reading.free_bytes, reading.uuid) == (24 * GIB, 20 * GIB, "GPU-1")
    assert reading.detail == "NVIDIA H200, driver 575.57.08, 512 MiB reserved by it"
    assert read(Library(Gpu("GPU-1"), Gpu("GPU-2")), match="GPU-2").index == 1
    assert read(Library(Gpu("GPU-1", slices=[Gpu("MIG-1")])), match="MIG-1").index is None


def test_a_driver_without_version_2_is_read_by_version_1(read):
    """FunctionNotFound on old drivers, "unknown error" on WSL (nvitop#30)."""
    for error in (pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_UNKNOWN):
        reading = read(Library(Gpu("GPU-1", memory_v2_error=error)))
        assert reading.free_bytes == 20 * GIB
        assert "reserved" not in reading.detail


def test_a_library_without_version_2_is_read_by_version_1(read):
    library = Library(Gpu("GPU-1"))
    del library.nvmlMemory_v2
    assert read(library).free_bytes == 20 * GIB


def test_unified_memory_is_unknown_and_says_what_to_use(read):
    """GB10: both versions are NotSupported."""
    reading = read(Library(Gpu("GPU-1", memory_error=pynvml.NVML_ERROR_NOT_SUPPORTED)))
    assert unknown(reading, 'kind = "host"')


def test_a_lost_gpu_is_unknown_and_not_empty(read):
    assert unknown(read(Library(Gpu("GPU-1", error=pynvml.NVML_ERROR_GPU_IS_LOST)), {"a": {5}}), "GPU is lost", "Xid")
    late = Gpu("GPU-1", memory_v2_error=pynvml.NVML_ERROR_GPU_IS_LOST)
    assert unknown(read(Library(late)), "GPU is lost")


def test_figures_that_cannot_be_are_unknown(read):
    for total, free in ((0, 0), (10, NOT_AVAILABLE), (NOT_AVAILABLE, -1)):
        assert unknown(read(Library(Gpu("GPU-1", total=total, free=free))), "cannot be")


def test_a_driver_upgraded_under_us_is_unknown_with_the_cure(read):
    library = Library(Gpu("GPU-1"))
    library.init_error = pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
    assert unknown(read(library), "reboot")


def test_a_host_without_nvml_is_unknown_and_not_an_exception(read):
    library = Library()
    library.init_error = pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
    assert unknown(read(library), "no NVIDIA driver")


def test_whatever_the_library_raises_is_a_reading(read):
    library = Library(Gpu("GPU-1"))
    library.nvmlDeviceGetUUID = lambda gpu: (_ for _ in ()).throw(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"))
    assert unknown(read(library))
    library = Library(Gpu("GPU-1"))
    library.nvmlDeviceGetMemoryInfo = None
    assert unknown(read(library), "NVML failed")


def test_nvml_is_initialised_afresh_after_a_failure(proc):
    library = Library(Gpu("GPU-1", error=pynvml.NVML_ERROR_GPU_IS_LOST))

    async def scenario():
        nvml = Nvml(library=library, deadline_s=30, proc=proc)
        [lost] = await nvml.read_all([device()], {})
        assert not lost.known
        library.gpus[0].error = None
        [back] = await nvml.read_all([device()], {})
        assert back.known
        await nvml.stop()

    asyncio.run(scenario())
    assert (library.calls, library.initialised) == (2, 0)


def test_one_bad_device_does_not_spoil_the_others(proc):
    library = Library(Gpu("GPU-1", error=pynvml.NVML_ERROR_GPU_IS_LOST), Gpu("GPU-2"))
    nvml = Nvml(library=library, deadline_s=30, proc=proc)
    readings = asyncio.run(nvml.read_all([device("0"), device("1", "gpu1"), device("9", "gpu9")], {}))
    assert [r.known for r in readings] == [False, True, False]


# --- matching ----------------------------------------------------------------------------------------------


def test_devices_are_matched_by_uuid_mig_uuid_or_index(read):
    library = Library(Gpu("GPU-1"), Gpu("GPU-2", slices=[Gpu("MIG-1", total=10 * GIB, free=9 * GIB)]))
    assert read(library, match="GPU-1").uuid == "GPU-1"
    assert read(library, match="0").uuid == "GPU-1"
    assert read(library, match="MIG-1").total_bytes == 10 * GIB
    assert unknown(read(library, match="GPU-7"), "no such GPU")
    assert unknown(read(library, match="7"), "no such GPU")
    assert unknown(read(library, match=None), "match")


def test_a_gpu_divided_by_mig_is_not_planned_on_and_names_its_slices(read):
    """Its aggregate figures need privilege, and no load goes to the parent."""
    library = Library(Gpu("GPU-1", slices=[None, Gpu("MIG-1"), Gpu("MIG-2")]))
    assert unknown(read(library), "MIG-1, MIG-2")


# --- who holds it ------------------------------------------------------------------------------------------


def test_a_worker_holds_what_its_whole_tree_holds(read):
    library = Library(Gpu("GPU-1", compute=[(11, 2 * GIB), (12, GIB), (99, 3 * GIB)]))
    reading = read(library, {"a": {10, 11, 12}})
    assert reading.used_by == (("a", 3 * GIB),)
    assert reading.foreign == ((99, 3 * GIB, "/usr/bin/process-99"),)


def test_a_process_that_computes_and_draws_counts_once(read):
    library = Library(Gpu("GPU-1", compute=[(11, 2 * GIB)], graphics=[(11, 2 * GIB), (12, GIB)]))
    assert read(library, {"a": {11, 12}}).used_by == (("a", 3 * GIB),)


def test_use_that_is_absent_the_sentinel_or_more_than_there_is_is_unknown_and_never_summed(read):
    for absent in (None, NOT_AVAILABLE, 25 * GIB):
        library = Library(Gpu("GPU-1", compute=[(11, 2 * GIB), (12, absent)]))
        reading = read(library, {"a": {11, 12}, "b": {11}})
        assert reading.used_by == (("a", None), ("b", 2 * GIB))


def test_a_worker_that_is_not_listed_is_unknown_and_not_0(read):
    library = Library(Gpu("GPU-1", compute=[(4_000_000, GIB)]))
    reading = read(library, {"a": {11}, "b": set()})
    assert reading.used_by == (("a", None), ("b", None))
    assert reading.foreign[0][:2] == (4_000_000, GIB)


def test_inside_a_pid_namespace_a_number_may_be_anothers(proc, read):
    """NVML names the host's pids there: 11 is our worker only if every listed pid is one that exists here."""
    (proc / "self/ns/pid").unlink()
    (proc / "self/ns/pid").symlink_to("pid:[4026532000]")
    (proc / "11").mkdir()
    library = Library(Gpu("GPU-1", compute=[(11, 5 * GIB), (31337, GIB)]))
    assert read(library, {"a": {11}}).used_by == (("a", None),)
    library.gpus[0].compute = [(11, 5 * GIB)]
    assert read(library, {"a": {11}}).used_by == (("a", 5 * GIB),)


def test_who_is_not_named_holds_nothing_only_where_all_are_named_with_their_memory(proc, read):
    library = Library(Gpu("GPU-1", compute=[(12, GIB)]))
    assert read(library, {"a": {11}}).names_all
    library.gpus[0].compute = [(12, None)]
    assert not read(library, {"a": {11}}).names_all
    library.gpus[0].compute = pynvml.NVML_ERROR_NO_PERMISSION
    assert not read(library, {"a": {11}}).names_all
    library.gpus[0].compute = []
    (proc / "self/ns/pid").unlink()
    (proc / "self/ns/pid").symlink_to("pid:[4026532000]")
    assert not read(library, {"a": {11}}).names_all


def test_a_driver_without_version_3_of_the_list_is_asked_for_version_2(read):
    def missing(gpu):
        raise pynvml.NVMLLibraryMismatchError("does not match")

    library = Library(Gpu("GPU-1", compute=[(11, GIB)]))
    library.nvmlDeviceGetComputeRunningProcesses = missing
    library.nvmlDeviceGetGraphicsRunningProcesses = missing
    assert read(library, {"a": {11}}).used_by == (("a", GIB),)


def test_a_list_that_cannot_be_read_leaves_use_unknown_and_memory_known(read):
    reading = read(Library(Gpu("GPU-1", compute=pynvml.NVML_ERROR_NO_PERMISSION)), {"a": {11}})
    assert reading.known
    assert reading.used_by == (("a", None),)
    assert "cannot be read" in reading.detail


def test_a_slice_has_no_graphics_list(read):
    library = Library(Gpu("GPU-1", compute=[(11, GIB)], graphics=pynvml.NVML_ERROR_NOT_SUPPORTED))
    assert read(library, {"a": {11}}).used_by == (("a", GIB),)


# --- which devices there are -------------------------------------------------------------------------------


def listed(library):
    return asyncio.run(Nvml(library=library, deadline_s=30).list_devices())


def test_slices_are_listed_in_place_of_their_gpu():
    library = Library(Gpu("GPU-1"), Gpu("GPU-2", slices=[None, Gpu("MIG-1"), Gpu("MIG-2")]))
    assert listed(library) == [
        SeenGpu("GPU-1", 0, None, "NVIDIA H200"),
        SeenGpu("MIG-1", 1, 1, "NVIDIA H200"),
        SeenGpu("MIG-2", 1, 2, "NVIDIA H200"),
    ]


def test_a_host_without_a_driver_or_a_gpu_has_no_devices():
    assert listed(Library()) == []
    for error in (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED):
        library = Library()
        library.init_error = error
        assert listed(library) == []


def test_a_driver_in_trouble_is_not_taken_for_a_host_without_a_gpu():
    """Or its models would be put in the host's memory without a word (as in ollama#11812)."""
    library = Library(Gpu("GPU-1"))
    library.init_error = pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
    for broken in (library, Library(Gpu("GPU-1"), Gpu("GPU-2", error=pynvml.NVML_ERROR_GPU_IS_LOST))):
        with pytest.raises(SwapdError) as caught:
            listed(broken)
        assert caught.value.code == DEVICE_UNKNOWN


def test_by_default_every_gpu_is_a_device_and_else_the_hosts_memory():
    seen = [SeenGpu("GPU-1", 0), SeenGpu("MIG-1", 1, 0), SeenGpu("MIG-2", 1, 1)]
    assert [(d.name, d.kind, d.match) for d in default_devices(seen)] == [
        ("gpu0", DeviceKind.NVML, "GPU-1"),
        ("gpu1-mig0", DeviceKind.NVML, "MIG-1"),
        ("gpu1-mig1", DeviceKind.NVML, "MIG-2"),
    ]
    [host] = default_devices([])
    assert (host.name, host.kind, host.match, host.memory_bytes) == ("host", DeviceKind.HOST, None, None)


# --- the deadline ------------------------------------------------------------------------------------------


def test_a_wedged_call_makes_readings_unknown_and_piles_up_no_threads(proc):
    library = Library(Gpu("GPU-1"))
    library.answer.clear()

    async def scenario():
        nvml = Nvml(library=library, deadline_s=0.05, proc=proc)
        both = [device("0"), device("0", "again")]
        for readings in await asyncio.gather(*(nvml.read_all(both, {"a": {1}}) for _ in range(10))):
            assert all(unknown(reading, "NVML did not answer in 0.05 s") for reading in readings)
            assert [r.name for r in readings] == ["gpu0", "again"]
        with pytest.raises(SwapdError, match="did not answer"):
            await nvml.list_devices()
        await nvml.stop()
        assert (library.calls, len(library.threads)) == (1, 1)
        library.answer.set()
        await nvml._pending
        nvml._deadline_s = 30
        assert (await nvml.read_all([device()], {}))[0].known
        assert library.calls == 1

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_cancelled_reading_leaves_the_next_one_well(proc):
    library = Library(Gpu("GPU-1"))
    library.answer.clear()

    async def scenario():
        nvml = Nvml(library=library, deadline_s=30, proc=proc)
        first = asyncio.ensure_future(nvml.read_all([device()], {}))
        await asyncio.to_thread(library.asked.wait, 30)
        first.cancel()
        second = asyncio.ensure_future(nvml.read_all([device()], {}))
        await asyncio.wait({first})
        library.answer.set()
        assert (await second)[0].known

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_without_a_driver_the_real_library_gives_a_reading():
    nvml = Nvml(deadline_s=30)
    [reading] = asyncio.run(nvml.read_all([device("GPU-00000000-0000-0000-0000-000000000000")], {"a": {os.getpid()}}))
    assert not reading.known
    assert reading.detail
