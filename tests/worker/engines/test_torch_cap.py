"""PyTorch's own limit. What stands for torch has its names and nothing else: no GPU is needed."""

import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from swapd.worker.engines.asgi import AsgiEngine
from swapd.worker.engines.torch_cap import limit_torch

GIB = 1 << 30


@pytest.fixture
def torch(monkeypatch):
    told = []
    cuda = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 1,
        get_device_properties=lambda number: SimpleNamespace(total_memory=24 * GIB),
        set_per_process_memory_fraction=lambda fraction, number: told.append((fraction, number)),
        told=told,
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    return cuda


def test_the_share_of_the_gpu_that_it_was_given_is_set(torch):
    assert limit_torch(6 * GIB) == (0.25,)
    assert limit_torch(48 * GIB) == (1.0,)
    assert torch.told == [(0.25, 0), (1.0, 0)]


def test_nothing_is_set_without_a_limit_or_a_gpu_or_torch(torch, monkeypatch):
    assert limit_torch(0) == ()
    torch.is_available = lambda: False
    assert limit_torch(GIB) == ()
    monkeypatch.delitem(sys.modules, "torch")
    assert limit_torch(GIB) == ()
    assert torch.told == []


def test_a_torch_that_cannot_be_limited_keeps_nobody_from_loading(torch):
    def fail(fraction, number):
        raise RuntimeError("an old one")

    torch.set_per_process_memory_fraction = fail
    assert limit_torch(GIB) == ()


def test_an_engine_sets_it_before_its_model_loads(torch):
    apps = str(Path(__file__).parents[2] / "support" / "apps")
    engine = AsgiEngine("echo_app:app", apps, gpu_cap_bytes=6 * GIB)
    sys.path.insert(0, apps)
    try:
        asyncio.run(engine.load(lambda *args, **options: None))
    finally:
        sys.path.remove(apps)
    assert torch.told == [(0.25, 0)]
