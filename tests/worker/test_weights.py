"""Weights in host memory: what is read is what the files hold, and every way in which it may end otherwise."""

import mmap
import os
import sys
import threading
from pathlib import Path

import pytest
from support.safetensors_files import pattern, write
from support.worker_client import Refused, ask_once, wait_until

from swapd.core.errors import CANCELED, LOAD_FAILED, NOT_SUPPORTED, OUT_OF_MEMORY, SwapdError
from swapd.worker import host_copy, on_device
from swapd.worker.weights import Weights

SMALL = {"a": ("U8", [5], b"hello"), "empty": ("F32", [0, 3], b""), "scalar": ("I16", [], b"\1\2")}


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(host_copy, "PIECE_BYTES", 1000)


def failed(code, do, *words):
    with pytest.raises(SwapdError) as caught:
        do()
    assert caught.value.code == code
    for word in words:
        assert word in caught.value.message
    return caught.value


def held(weights, **options):
    return {name: (t.dtype, list(t.shape), bytes(t.data)) for name, t in weights.host_tensors(**options).items()}


def test_every_tensor_is_as_in_its_file(tmp_path, small_pieces):
    """Larger than several pieces, read by several threads, from several files, small and empty ones between."""
    first = {"big": ("F32", [2500], pattern(10_000)), **SMALL}
    second = {"odd": ("U8", [3333], pattern(3333, 5)), "more": ("F64", [500], pattern(4000, 9))}
    write(tmp_path / "model-1.safetensors", first, {"format": "pt"})
    write(tmp_path / "model-2.safetensors", second)
    assert held(Weights(tmp_path)) == {**first, **second}


def test_staged_once_and_told_on_the_way(tmp_path, small_pieces):
    path = write(tmp_path / "m.safetensors", {"big": ("U8", [10_000], pattern(10_000))})
    weights, told = Weights(path), []
    weights.stage(lambda done, total, unit: told.append((done, total, unit)))
    assert told[-1] == (10_000, 10_000, "bytes")
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    path.unlink()  # nothing more is read
    weights.stage()
    assert held(weights)["big"][2] == pattern(10_000)


def test_a_file_that_is_overwritten_later_changes_nothing(tmp_path):
    path = write(tmp_path / "m.safetensors", SMALL)
    weights = Weights([path])
    weights.stage()
    path.write_bytes(b"")
    assert held(weights) == SMALL


def test_every_page_is_there_once_it_is_staged(tmp_path):
    """The device's copy must meet no page fault."""
    path = write(tmp_path / "m.safetensors", {"big": ("U8", [8 << 20], bytes(8 << 20))})
    weights = Weights(path)
    before = resident_bytes()
    weights.stage()
    assert resident_bytes() - before >= 7 << 20


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_staging_goes_last_and_loading_does_not(tmp_path, small_pieces, monkeypatch):
    """The niceness of the threads that read, seen by the kernel; the caller's own stays."""
    path = write(tmp_path / "m.safetensors", {"big": ("U8", [50_000], pattern(50_000))})
    nice = []
    real = host_copy._Filling._read
    monkeypatch.setattr(
        host_copy._Filling, "_read", lambda *a: (nice.append(os.getpriority(os.PRIO_PROCESS, 0)), real(*a))
    )
    own = os.getpriority(os.PRIO_PROCESS, 0)
    Weights(path).stage()
    assert set(nice) == {19}
    nice.clear()
    Weights(path).host_tensors()
    assert set(nice) == {own}
    assert os.getpriority(os.PRIO_PROCESS, 0) == own


def test_stop_ends_a_reading_from_another_thread(tmp_path, small_pieces, monkeypatch):
    path = write(tmp_path / "m.safetensors", {"big": ("U8", [500_000], pattern(500_000))})
    weights, begun, go_on = Weights(path), threading.Event(), threading.Event()
    real = host_copy._Filling._read

    def read(*arguments):
        begun.set()
        assert go_on.wait(30)
        return real(*arguments)

    monkeypatch.setattr(host_copy._Filling, "_read", read)
    ended = []
    thread = threading.Thread(target=lambda: ended.append(failed(CANCELED, weights.stage)))
    thread.start()
    assert begun.wait(30)
    weights.stop()
    go_on.set()
    thread.join(30)
    assert not thread.is_alive()
    assert len(ended) == 1
    assert not readers()
    failed(CANCELED, weights.stage)


def test_a_worker_that_is_told_to_stop_reads_no_further(tmp_path, monkeypatch):
    monkeypatch.setattr("swapd.worker.weights.stopping", threading.Event())
    weights = Weights(write(tmp_path / "m.safetensors", SMALL))
    stopping = sys.modules["swapd.worker.weights"].stopping
    stopping.set()
    failed(CANCELED, weights.stage, "told to stop")


def test_a_hook_that_keeps_its_thread_hears_that_it_shall_stop(spawn, tmp_path):
    """The loop cannot tell it: the hook runs on the loop's thread. It would be killed at the deadline."""
    worker = spawn("weights_app:Waits")
    client = worker.greeted()
    client.send("stage")
    wait_until(lambda: "waiting" in worker.log, "the hook runs")
    client.request("stop")
    assert worker.wait() == 0
    assert "heard of it" in worker.log


def test_a_progress_that_raises_leaves_no_reader_behind(tmp_path):
    path = write(tmp_path / "m.safetensors", SMALL)

    def progress(*figures, **options):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Weights(path).stage(progress)
    assert not readers()


def test_where_no_more_threads_may_be_started_it_says_so_and_leaves_no_reader_behind(tmp_path, monkeypatch):
    """By the limit of a container: a reader that goes on would write to memory that is given back."""
    path = write(tmp_path / "m.safetensors", SMALL)
    start, read = threading.Thread.start, host_copy._Filling._read
    two_begun = threading.Event()

    def one_only(thread):
        if thread.name == "weights-1":
            two_begun.set()
            raise RuntimeError("can't start new thread")
        start(thread)

    def slowly(*arguments):
        assert two_begun.wait(30)
        read(*arguments)

    monkeypatch.setattr(host_copy, "READERS", 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(threading.Thread, "start", one_only)
    monkeypatch.setattr(host_copy._Filling, "_read", slowly)
    with pytest.raises(RuntimeError, match="new thread"):
        Weights(path).stage()
    assert not readers()


def readers():
    return [t for t in threading.enumerate() if t.name.startswith("weights-")]


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "m.safetensors", SMALL)
    real = host_copy._Filling._read

    def read(*arguments):
        real(*arguments)
        os.utime(path, ns=(1, 1))

    monkeypatch.setattr(host_copy._Filling, "_read", read)
    failed(LOAD_FAILED, Weights(path).stage, str(path), "was changed while it was read")


def test_a_file_that_becomes_shorter_is_refused(tmp_path):
    path = write(tmp_path / "m.safetensors", {"big": ("U8", [9000], pattern(9000))})
    weights = Weights(path)
    assert weights.size_bytes >= 9000
    os.truncate(path, 4000)
    failed(LOAD_FAILED, weights.stage, str(path), "shorter")


def test_more_than_the_host_has_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = write(tmp_path / "m.safetensors", SMALL)
    monkeypatch.setattr(host_copy, "_available_bytes", lambda: host_copy.SPARE_BYTES)
    error = failed(OUT_OF_MEMORY, Weights(path).stage, "256 MiB are available")
    assert error.details["available_bytes"] == host_copy.SPARE_BYTES


def test_damage_is_named_with_its_file(tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 20)
    failed(LOAD_FAILED, Weights(tmp_path).stage, "bad.safetensors", "not a safetensors file")
    failed(LOAD_FAILED, Weights(tmp_path / "none.safetensors").stage, "none.safetensors", "no such file")
    failed(LOAD_FAILED, Weights([]).stage, "no .safetensors file")


def test_without_torch_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    failed(NOT_SUPPORTED, Weights(write(tmp_path / "m.safetensors", SMALL)).load, "need torch")


def test_an_engine_stages_in_a_real_worker_and_tells_how_far_it_is(spawn, tmp_path):
    path = write(tmp_path / "m.safetensors", {"answer": ("U8", [2], b"42")})
    worker = spawn("weights_app:Engine", env={"WEIGHTS": str(path)})
    client = worker.greeted()
    client.request("stage")
    told = [e["params"] for e in client.events if e["event"] == "progress"]
    assert told[-1] == {"step": "stage", "done": 2, "total": 2, "unit": "bytes"}
    path.unlink()
    client.request("load")
    assert ask_once(worker.http)[2] == b"42"
    assert "weights.in_host_memory bytes=512" in worker.log


def test_damaged_weights_fail_the_stage_with_their_name(spawn, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"\xff" * 20)
    client = spawn("weights_app:Engine", env={"WEIGHTS": str(path)}).greeted()
    with pytest.raises(Refused, match=f"LOAD_FAILED: Weights {path}: its header would be"):
        client.request("stage")


# --- pinning: what CUDA is asked for, through a stand-in for the few calls of torch that it takes ---------------------


class Torch:
    """Registers what it is asked to, but for the piece number `refused`."""

    def __init__(self, refused=None):
        self.uint8, self.cuda, self.pieces, self.launched, self.refused = "uint8", self, [], 0, refused

    def frombuffer(self, memory, dtype):
        return self

    def data_ptr(self):
        return 1 << 30

    def cudart(self):
        return self

    def cudaHostRegister(self, address, size, flags):
        self.pieces.append((address - (1 << 30), size))
        return 0 if len(self.pieces) - 1 != self.refused else 1

    def zeros(self, count, device):
        self.launched += 1
        raise RuntimeError("CUDA error: invalid argument")


@pytest.fixture
def pages():
    with mmap.mmap(-1, 5 * mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        yield memory


def test_all_is_pinned_in_pieces_that_a_copy_never_straddles(pages, monkeypatch):
    assert on_device.PIN_BYTES % on_device.CHUNK_BYTES == 0
    monkeypatch.setattr(on_device, "PIN_BYTES", 2 * mmap.PAGESIZE)
    torch, told, page = Torch(), [], mmap.PAGESIZE
    pinned = on_device.Pinned(torch, pages)
    pinned.pin(lambda done, total: told.append((done, total)), lambda: None)
    assert torch.pieces == [(0, 2 * page), (2 * page, 2 * page), (4 * page, page)]
    assert told == [(2 * page, 5 * page), (4 * page, 5 * page), (5 * page, 5 * page)]
    assert pinned.pinned_bytes == 5 * page


def test_memory_that_cuda_refuses_to_pin_is_used_unpinned(pages, monkeypatch):
    """And the error, which CUDA keeps for whoever asks next, is taken here and not by the model's first kernel."""
    monkeypatch.setattr(on_device, "PIN_BYTES", 2 * mmap.PAGESIZE)
    torch = Torch(refused=1)
    pinned = on_device.Pinned(torch, pages)
    pinned.pin(lambda done, total: None, lambda: None)
    assert len(torch.pieces) == 2
    assert pinned.pinned_bytes == 2 * mmap.PAGESIZE
    assert torch.launched == 1


def test_memory_is_whole_pages(tmp_path):
    weights = Weights(write(tmp_path / "m.safetensors", SMALL))
    weights.stage()
    assert len(weights._memory) == mmap.PAGESIZE
