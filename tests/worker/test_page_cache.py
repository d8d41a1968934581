"""Files into the page cache: real files, really dropped from it beforehand."""

import asyncio
import mmap
import os
import threading
from dataclasses import asdict
from pathlib import Path

import pytest
from support.worker_client import Refused, wait_until

from swapd.worker import page_cache
from swapd.worker.page_cache import PIECE_BYTES, Brought, bring, bring_now

MIB = 1 << 20


def no_progress(*figures, **options):
    pass


def is_cached(path):
    with open(path, "rb") as file:
        return page_cache._is_cached(file.fileno(), 0, os.path.getsize(path))


@pytest.fixture
def cold(tmp_path):
    """A file of 20 MiB that is on the disk only."""
    path = tmp_path / "weights.bin"
    with path.open("wb") as file:
        file.write(os.urandom(20 * MIB))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if is_cached(path):
        pytest.skip("this file system has no page cache that can be dropped")
    return path


def test_a_cold_file_is_read_and_then_found(cold):
    assert bring_now([str(cold)], float("inf"), no_progress, lambda: False) == Brought(20 * MIB, 0, 20 * MIB)
    assert is_cached(cold)
    assert bring_now([str(cold)], float("inf"), no_progress, lambda: False) == Brought(20 * MIB, 20 * MIB)


def test_only_what_is_missing_is_read(cold):
    with cold.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # nothing is read ahead
        os.pread(file.fileno(), PIECE_BYTES, 0)
    brought = bring_now([str(cold)], float("inf"), no_progress, lambda: False)
    assert brought.cached_bytes >= PIECE_BYTES
    assert brought.cached_bytes + brought.read_bytes == 20 * MIB


def test_it_leaves_out_what_there_is_no_room_for(cold, monkeypatch):
    monkeypatch.setattr(page_cache, "room_bytes", lambda: page_cache.SPARE_BYTES + 9 * MIB)
    brought = bring_now([str(cold)], float("inf"), no_progress, lambda: False)
    assert brought == Brought(20 * MIB, 0, 8 * MIB, 12 * MIB)


def test_files_that_others_have_mapped_are_no_room(tmp_path):
    """The kernel calls them available; whoever serves from them would read them again."""
    path = tmp_path / "mapped"
    path.write_bytes(bytes(300 * MIB))
    before = available() - page_cache.room_bytes()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert not any(mapped[at] for at in range(0, 300 * MIB, 4096))
        assert available() - page_cache.room_bytes() > before + 200 * MIB


def available():
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def test_time_and_a_stop_end_it_between_two_pieces(cold):
    assert bring_now([str(cold)], 0.0, no_progress, lambda: False).read_bytes == 0
    pieces = iter([False, True])
    assert bring_now([str(cold)], float("inf"), no_progress, lambda: next(pieces)).read_bytes == PIECE_BYTES


def test_a_file_that_cannot_be_read_is_left_to_the_load(cold, tmp_path):
    brought = bring_now([str(tmp_path / "none"), str(tmp_path), str(cold)], float("inf"), no_progress, lambda: False)
    assert brought.read_bytes == 20 * MIB


def test_it_goes_last_on_a_thread_of_its_own(cold, monkeypatch):
    seen = []
    monkeypatch.setattr(
        page_cache, "_bring_piece", lambda *a: seen.append((os.getpriority(os.PRIO_PROCESS, 0), threading.get_ident()))
    )
    asyncio.run(bring([str(cold)], 60.0, no_progress))
    assert {nice for nice, _ in seen} == {19}
    assert threading.get_ident() not in {thread for _, thread in seen}


def test_what_fails_or_hangs_there_fails_nothing(cold, monkeypatch):
    def fails(*arguments):
        raise ValueError("a bug")

    monkeypatch.setattr(page_cache, "_bring_piece", fails)
    assert asyncio.run(bring([str(cold)], 60.0, no_progress)) == asdict(Brought())
    go_on = threading.Event()

    def hangs(*arguments):  # a file server that is gone
        go_on.wait(30)

    monkeypatch.setattr(page_cache, "_open", hangs)
    monkeypatch.setattr(page_cache, "LATE_S", 0.05)
    assert asyncio.run(bring([str(cold)], 0.0, no_progress)) == asdict(Brought())
    go_on.set()


def test_cancelling_ends_the_thread(cold, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    pieces = []

    def piece(*arguments):
        pieces.append(arguments)
        begun.set()
        assert go_on.wait(30)

    monkeypatch.setattr(page_cache, "_bring_piece", piece)

    async def scenario():
        task = asyncio.create_task(bring([str(cold)], 60.0, no_progress))
        await asyncio.to_thread(begun.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()

    asyncio.run(scenario())
    wait_until(lambda: not [t for t in threading.enumerate() if t.name == "page-cache"], "its thread ends")
    assert len(pieces) == 1


@pytest.mark.parametrize("kind", ["asgi", "engine"])
def test_a_worker_without_a_hook_is_staged_by_its_files(spawn, cold, tmp_path, kind):
    server = {"argv": ["true"], "ports_dir": str(tmp_path)}
    worker = spawn(kind=kind, **({"server": server} if kind == "engine" else {}))
    client = worker.connect()
    assert "page_cache" in client.hello(worker.id)["capabilities"]
    result = client.request("stage", files=[str(cold)], deadline_s=30.0)
    assert result == {"bytes": 20 * MIB, "cached_bytes": 0, "read_bytes": 20 * MIB, "no_room_bytes": 0}
    assert client.events[-1]["params"] == {"step": "stage", "done": 20 * MIB, "total": 20 * MIB, "unit": "bytes"}
    assert client.request("stats")["state"] == "staged"
    assert is_cached(cold)
    if kind == "asgi":
        client.request("load")


def test_files_that_are_no_paths_are_refused(spawn):
    client = spawn().greeted()
    for wrong in ("x", [1]):
        with pytest.raises(Refused, match="BAD_REQUEST: files must be a list of paths"):
            client.request("stage", files=wrong, deadline_s=1.0)
    assert client.request("stats")["state"] == "spawned"
