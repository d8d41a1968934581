"""Weights with torch, on the CPU: there a device is imitated by torch's own memory. tests/gpu has the real thing.

Skipped where torch is not installed: its wheel, with CUDA, takes gigabytes, so the tests' packages are without it.
"""

import contextlib
import random
from types import SimpleNamespace

import pytest
from support.safetensors_files import write

from swapd.core.errors import CANCELED, LOAD_FAILED, SwapdError
from swapd.worker import on_device
from swapd.worker.on_device import OnDevice
from swapd.worker.weights import DTYPES, Weights

torch = pytest.importorskip("torch")
RANDOM = random.Random(1)


def bits(tensor):
    return tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def test_each_type_comes_as_torch_has_it(tmp_path):
    tensors = {}
    for name, of_torch in DTYPES.items():
        size = getattr(torch, of_torch).itemsize
        data = RANDOM.randbytes(6 * size) if name != "BOOL" else b"\0\1\1\0\0\1"
        tensors[name] = (name, [2, 3], data)
    tensors["scalar"] = ("F32", [], b"\0\0\x80?")
    tensors["empty"] = ("BF16", [0, 7], b"")
    loaded = Weights(write(tmp_path / "m.safetensors", tensors)).load("cpu")
    for name, (dtype, shape, data) in tensors.items():
        assert loaded[name].dtype == getattr(torch, DTYPES[dtype]), name
        assert list(loaded[name].shape) == shape
        assert bits(loaded[name]) == data
    assert loaded["scalar"].item() == 1.0


def test_the_same_as_the_formats_own_library_reads(tmp_path):
    library = pytest.importorskip("safetensors.torch")
    tensors = {"a": torch.randn(33, 7), "b": torch.randn(5).to(torch.bfloat16), "c": torch.arange(9)}
    library.save_file(tensors, tmp_path / "m.safetensors")
    for name, tensor in Weights(tmp_path).load("cpu").items():
        assert torch.equal(tensor, tensors[name])


def test_a_type_that_torch_has_not_is_told_before_anything_is_read(tmp_path):
    path = write(tmp_path / "m.safetensors", {"w": ("F4", [4], b"ab")})
    weights = Weights(path)
    with pytest.raises(SwapdError, match="'w' is of type F4") as caught:
        weights.load("cpu")
    assert caught.value.code == LOAD_FAILED
    assert weights.took.read_s is None


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Weights whose "device" is memory of torch's own, copied in small chunks."""
    monkeypatch.setattr(on_device, "CHUNK_BYTES", 1000)
    shapes = {"w": (30, 100), "b": (30,)}
    tensors = {name: ("F32", shape, bits(torch.randn(shape))) for name, shape in shapes.items()}
    weights = Weights(write(tmp_path / "m.safetensors", tensors))
    host = weights.load("cpu")
    flat_host = torch.frombuffer(weights._memory, dtype=torch.uint8)[: weights.size_bytes]
    weights._on_device = OnDevice(torch, flat_host, torch.device("cpu"))
    weights._to_device(None)
    return weights, host, dict(weights._views(torch, weights._on_device.flat))


def test_a_copy_is_whole_and_its_own(elsewhere):
    _, host, device = elsewhere
    for name in host:
        assert bits(device[name]) == bits(host[name])
        assert device[name].data_ptr() != host[name].data_ptr()
    device["w"].zero_()
    assert host["w"].count_nonzero()


def test_parking_frees_it_all_and_waking_brings_back_what_a_module_holds(elsewhere):
    """The module is told nothing of either: its parameters are views that come back to life."""
    weights, host, device = elsewhere
    with torch.device("meta"):
        module = torch.nn.Linear(100, 30)
    module.load_state_dict({"weight": device["w"], "bias": device["b"]}, assign=True)
    wanted = torch.nn.functional.linear(torch.ones(100), host["w"], host["b"])
    assert torch.equal(module(torch.ones(100)), wanted)
    weights.park()
    assert module.weight.untyped_storage().nbytes() == 0
    weights.park()  # once more frees nothing more
    told = []
    weights.wake(lambda done, total, unit: told.append((done, total, unit)))
    assert torch.equal(module(torch.ones(100)), wanted)
    size = weights.size_bytes
    assert told[0] == (1000, size, "bytes")
    assert told[-1] == (size, size, "bytes")


def test_stop_ends_a_copy_between_two_chunks(elsewhere):
    weights, _, _ = elsewhere
    weights.park()
    with pytest.raises(SwapdError) as caught:
        weights.wake(lambda done, total, unit: weights.stop())
    assert caught.value.code == CANCELED


def test_on_the_cpu_nothing_is_copied_and_parking_gives_nothing(tmp_path):
    weights = Weights(write(tmp_path / "m.safetensors", {"w": ("U8", [3], b"abc")}))
    weights.stage()
    loaded = weights.load("cpu")
    assert loaded["w"].data_ptr() % 512 == torch.frombuffer(weights._memory, dtype=torch.uint8).data_ptr() % 512
    weights.park()
    weights.wake()
    assert bits(loaded["w"]) == b"abc"
    assert weights.took.copy_s is None


class Cuda:
    """What OnDevice asks of torch.cuda, written down; the memory is torch's on the CPU."""

    def __init__(self):
        self.said = []

    def Stream(self, device):
        return self

    def current_stream(self, device):
        return "the model's"

    def wait_stream(self, other):
        self.said.append(f"wait for {other}")

    def stream(self, stream):
        return contextlib.nullcontext()

    def record_event(self):
        self.said.append("event")
        return SimpleNamespace(synchronize=lambda: self.said.append("arrived"))

    def synchronize(self, device=None):
        self.said.append("all done")

    def empty_cache(self):
        self.said.append("given back")


@pytest.fixture
def on_cuda(monkeypatch):
    monkeypatch.setattr(on_device, "CHUNK_BYTES", 1000)
    cuda = Cuda()
    seams = SimpleNamespace(uint8=torch.uint8, empty=lambda n, dtype, device: torch.empty(n, dtype=dtype), cuda=cuda)
    host = torch.arange(10_500, dtype=torch.int64).to(torch.uint8)
    return cuda, host, OnDevice(seams, host, torch.device("cuda"))


def test_chunks_go_on_a_stream_of_their_own_a_few_at_a_time(on_cuda):
    """What had the memory before is waited for; what is told has arrived; at the end everything has."""
    cuda, host, copy = on_cuda
    told = []
    copy.copy(lambda done, total: told.append((done, cuda.said.count("arrived"))), lambda: None)
    assert torch.equal(copy.flat, host)
    assert cuda.said[0] == "wait for the model's"
    assert cuda.said[1 : 2 + on_device.IN_FLIGHT] == ["event"] * (on_device.IN_FLIGHT + 1)
    assert cuda.said[-1] == "all done"
    assert told == [(min(1000 * n, 10_500), n) for n in range(1, 12)]


def test_a_copy_that_is_given_up_leaves_nothing_under_way(on_cuda):
    cuda, _, copy = on_cuda
    checks = iter([None, None])
    with pytest.raises(StopIteration):
        copy.copy(lambda done, total: None, lambda: next(checks))
    assert cuda.said[-1] == "all done"


def test_memory_is_given_back_once_nothing_computes_with_it(on_cuda):
    cuda, _, copy = on_cuda
    copy.drop()
    assert cuda.said == ["all done", "given back"]
    assert copy.flat.untyped_storage().nbytes() == 0
