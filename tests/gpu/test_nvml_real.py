"""NVML on a real GPU."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace

import pytest

from swapd.core.errors import SwapdError
from swapd.host.nvml import Nvml

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def seen():
    try:
        found = asyncio.run(Nvml(deadline_s=30).list_devices())
    except SwapdError as error:
        pytest.skip(str(error))
    if not found:
        pytest.skip("no NVIDIA GPU here")
    return found


def test_every_gpu_that_is_listed_can_be_read(seen):
    devices = [SimpleNamespace(name=g.uuid, match=g.uuid, headroom_bytes=0, memory_bytes=None) for g in seen]
    nvml = Nvml(deadline_s=30)

    async def scenario():
        readings = await nvml.read_all(devices, {"me": {os.getpid()}})
        await nvml.stop()
        return readings

    for gpu, reading in zip(seen, asyncio.run(scenario()), strict=True):
        assert reading.known, reading.detail
        assert reading.uuid == gpu.uuid
        assert 0 <= reading.free_bytes <= reading.total_bytes
        assert reading.total_bytes > 1 << 30
        assert reading.used_by == (("me", None),)


def test_an_index_and_a_uuid_name_the_same_gpu(seen):
    whole = next((g for g in seen if g.slice is None), None)
    if whole is None:
        pytest.skip("every GPU here is divided by MIG")
    by = [SimpleNamespace(name="x", match=m, headroom_bytes=0) for m in (whole.uuid, str(whole.index))]
    first, second = asyncio.run(Nvml(deadline_s=30).read_all(by, {}))
    assert first.uuid == second.uuid == whole.uuid
