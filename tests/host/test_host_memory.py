"""The host's memory as a device, with real processes that share it in the ways models do."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from pathlib import Path

import psutil
import pytest
from support.memory_process import MemoryProcess

from swapd.core.model import DeviceKind
from swapd.host.host_memory import HostMemory, cgroup_room

MIB = 1 << 20
SIZE_MIB = 100
# What a Python process takes and gives back by itself while it obeys.
SLACK = 3 * MIB


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.gguf"
    block = os.urandom(MIB)
    with path.open("wb") as file:
        for _ in range(SIZE_MIB):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return path


@pytest.fixture
def process():
    with MemoryProcess() as started:
        yield started


def used(*processes, budget=None):
    workers = {f"w{i}": p.pids if isinstance(p, MemoryProcess) else p for i, p in enumerate(processes)}
    reading = HostMemory().read("ram", budget, 0, workers)
    return [bytes_ for _, bytes_ in reading.used_by]


def pss(pid):
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.search(r"^Pss: +(\d+)", rollup, re.MULTILINE).group(1)) * 1024


def grows(process, line, by_mib, pids=None):
    [before] = used(pids or process)
    process.do(line)
    [after] = used(pids or process)
    assert after - before == pytest.approx(by_mib * MIB, abs=SLACK)


def test_anonymous_memory_counts(process):
    grows(process, "anon(80)", 80)


def test_a_mapped_file_counts_by_what_of_it_is_resident(process, weights):
    grows(process, f"file({str(weights)!r})", SIZE_MIB)


def test_a_file_mapped_twice_in_one_process_counts_once(process, weights):
    process.do(f"file({str(weights)!r})")
    grows(process, f"file({str(weights)!r}, private=False)", 0)


def test_a_file_mapped_in_pieces_counts_whole_though_another_maps_it_too(process, weights):
    with MemoryProcess() as other:
        other.do(f"pieces({str(weights)!r}, 10)")
        grows(process, f"pieces({str(weights)!r}, 10)", SIZE_MIB)


def test_two_workers_that_map_one_file_each_count_it_and_the_device_once(weights):
    """PSS says half of it for each, and the rest appears when one of them ends."""
    with MemoryProcess() as first:
        budget = 4096 * MIB
        first.do(f"file({str(weights)!r})")
        [alone], alone_pss = used(first), pss(first.process.pid)
        with MemoryProcess() as second:
            [own] = used(second)
            second.do(f"file({str(weights)!r})")
            both = used(first, second)
            reading = HostMemory().read("ram", budget, 0, {"a": first.pids, "b": second.pids})
            assert alone_pss - pss(first.process.pid) > 40 * MIB  # PSS misleads
            assert both[0] == pytest.approx(alone, abs=SLACK)
            assert both[1] == pytest.approx(own + SIZE_MIB * MIB, abs=SLACK)
            assert reading.free_bytes == pytest.approx(budget - alone - own, abs=2 * SLACK)
        assert used(first)[0] == pytest.approx(alone, abs=SLACK)


def test_programs_and_libraries_do_not_count(process):
    """A fresh interpreter maps megabytes of code; it holds little of its own."""
    mapped = psutil.Process(process.process.pid).memory_info().rss
    assert used(process)[0] < mapped / 2


def test_a_file_mapped_as_code_does_not_count(process, weights):
    grows(process, f"file({str(weights)!r}, execute=True)", 0)


@pytest.mark.parametrize("kind", ["memfd(60)", "shared(60)"])
def test_shared_memory_counts_once_in_a_tree(process, kind):
    grows(process, kind, 60)
    process.fork()
    process.do("child(0, 'read_on(0)')")
    [both] = used(process)
    process.do("child(0, 'write_on(0)')")
    assert used(process)[0] == pytest.approx(both, abs=SLACK)
    rss = sum(psutil.Process(pid).memory_info().rss for pid in process.pids)
    assert rss - both > 55 * MIB  # RSS misleads


def test_a_segment_in_dev_shm_counts_once_in_a_tree(process):
    path = Path("/dev/shm") / f"swapd-test-{os.getpid()}"
    path.write_bytes(os.urandom(60 * MIB))
    try:
        process.fork()
        grows(process, f"file({str(path)!r}, private=False)", 60)
        process.do(f"child(0, {f'file({str(path)!r}, private=False)'!r})")
        [one] = used({process.process.pid})
        [both] = used(process)
        assert both - one < 10 * MIB
    finally:
        path.unlink()


def test_pages_shared_by_a_fork_count_once_until_they_are_written(process):
    """Copy-on-write: RSS counts them for parent and child from the first moment."""
    process.do("anon(60)")
    [before] = used(process)
    process.fork()
    [forked] = used(process)
    assert forked - before < 10 * MIB
    process.do("child(0, 'write_on(0)')")
    assert used(process)[0] - forked == pytest.approx(60 * MIB, abs=2 * SLACK)


def test_processes_that_vanish_count_nothing(process):
    process.fork()
    process.do("anon(30)")
    process.end()
    assert used(process) == [0]
    assert used(set()) == [0]


def test_mapped_weights_are_not_free_though_the_kernel_calls_them_available(process, weights):
    """MemAvailable does not move when a file is mapped: its pages could be dropped, but the model needs them."""
    memory = HostMemory()
    process.do(f"file({str(weights)!r})")

    def difference():
        busy = memory.read("ram", None, 0, {"a": process.pids})
        ignored = memory.read("ram", None, 0, {})
        return ignored.free_bytes - busy.free_bytes

    # Other processes come and go between the two readings, so one pair in a few must tell.
    assert any(abs(difference() - SIZE_MIB * MIB) < 20 * MIB for _ in range(20))


def test_a_budget_is_the_total_and_what_is_used_of_it_is_not_free(process):
    budget = 512 * MIB
    process.do("anon(100)")
    reading = HostMemory().read("ram", budget, 7, {"a": process.pids})
    [(worker, held)] = reading.used_by
    assert (worker, reading.kind, reading.headroom_bytes, reading.total_bytes) == ("a", DeviceKind.HOST, 7, budget)
    assert reading.free_bytes == budget - held
    assert HostMemory().read("ram", 50 * MIB, 0, {"a": process.pids}).free_bytes == 0


def test_the_largest_processes_of_others_are_named_where_the_memory_is_shared_with_them(process):
    process.do("anon(100)")
    pid = process.process.pid
    others = set(psutil.pids()) - {pid}  # as if all of these were ours
    [(found, held, name)] = HostMemory().read("ram", None, 0, {}, others).foreign
    assert (found, name) == (pid, Path(f"/proc/{pid}/comm").read_text().strip())
    assert held >= 100 * MIB
    assert HostMemory().read("ram", None, 0, {}, others | {pid}).foreign == ()
    assert HostMemory().read("ram", None, 0, {}).foreign == (), "who is swapd's is not known"
    assert HostMemory().read("ram", 1 << 60, 0, {}, others).foreign, "a budget that others stand in the way of"
    small = psutil.virtual_memory().available // 4
    assert HostMemory().read("ram", small, 0, {}, others).foreign == (), "a budget that is there, whatever others hold"


def test_no_more_of_them_than_a_page_has_room_for(tmp_path):
    for pid in range(1, 40):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "statm").write_text(f"999999 {100_000 + pid} 50000 1 0 1 0\n")
        (tmp_path / str(pid) / "comm").write_text(f"p{pid}\n")
    (tmp_path / "40").mkdir()  # it ends just now
    found = HostMemory(proc=tmp_path).read("ram", None, 0, {}, {39}).foreign
    page = os.sysconf("SC_PAGE_SIZE")
    assert found == tuple((pid, (50_000 + pid) * page, f"p{pid}") for pid in (38, 37, 36, 35, 34))


def test_a_budget_beyond_the_host_does_not_make_memory():
    reading = HostMemory().read("ram", 1 << 60, 0, {})
    assert reading.free_bytes <= psutil.virtual_memory().total


def test_what_may_not_be_read_is_unknown_and_charged_by_its_resident_size(process, tmp_path):
    process.do("anon(50)")
    [held] = used(process)
    pid = process.process.pid
    (tmp_path / str(pid) / "smaps").mkdir(parents=True)  # reading a directory fails, as reading without permission does
    reading = HostMemory(proc=tmp_path).read("ram", 1024 * MIB, 0, {"a": {pid}})
    assert reading.used_by == (("a", None),)
    assert reading.free_bytes <= 1024 * MIB - held
    assert "not allowed to see what a maps" in reading.detail


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
def test_another_users_process_is_unknown_to_an_unprivileged_reader(process):
    process.do("anon(10)")
    os.seteuid(65534)
    try:
        reading = HostMemory().read("ram", 1 << 30, 0, {"a": process.pids})
    finally:
        os.seteuid(0)
    assert reading.used_by == (("a", None),)
    assert reading.free_bytes <= (1 << 30) - 10 * MIB


def test_a_smaps_that_is_not_understood_is_unknown_and_not_zero(tmp_path):
    pid = os.getpid()
    (tmp_path / str(pid)).mkdir()
    (tmp_path / str(pid) / "smaps").write_text("00400000-00401000 r--p 0 00:00 0\nRss: many kB\n")
    assert HostMemory(proc=tmp_path).read("ram", 1 << 30, 0, {"a": {pid}}).used_by == (("a", None),)


# --- the deadline ------------------------------------------------------------------------------------------


class Stuck(HostMemory):
    """Its /proc does not answer until `release` is set."""

    def __init__(self):
        super().__init__(deadline_s=0.05)
        self.release = threading.Event()
        self.asked = threading.Event()
        self.calls = 0

    def read(self, *args):
        self.calls += 1
        self.asked.set()
        self.release.wait(30)
        return super().read(*args)


def test_readings_on_a_thread():
    reading = asyncio.run(HostMemory(deadline_s=30).read_async("ram", None, 0, {"me": {os.getpid()}}))
    assert reading.known
    assert reading.used_by[0][1] > MIB


def test_a_proc_that_does_not_answer_makes_the_reading_unknown_and_piles_up_no_threads():
    async def scenario():
        memory = Stuck()
        readings = await asyncio.gather(*(memory.read_async("ram", None, 0, {"a": {1}}) for _ in range(5)))
        assert {r.known for r in readings} == {False}
        assert readings[0].used_by == (("a", None),)
        assert readings[0].detail == "/proc did not answer in 0.0525 s"
        assert memory.calls == 1
        memory.release.set()
        await memory._pending
        memory._deadline_s = 30
        assert (await memory.read_async("ram", None, 0, {})).known
        assert memory.calls == 2

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_many_processes_may_take_longer():
    async def scenario():
        memory = Stuck()
        memory._deadline_s, longer = 0.001, memory.release.set
        asyncio.get_running_loop().call_later(1, longer)
        return await memory.read_async("ram", None, 0, {"a": set(range(2**22, 2**22 + 600_000))})

    assert asyncio.run(scenario()).known


def test_a_cancelled_reading_leaves_the_next_one_well():
    async def scenario():
        memory = Stuck()
        memory._deadline_s = 30
        first = asyncio.ensure_future(memory.read_async("ram", None, 0, {}))
        await asyncio.to_thread(memory.asked.wait, 30)
        first.cancel()
        second = asyncio.ensure_future(memory.read_async("ram", None, 0, {}))
        await asyncio.wait({first})
        memory.release.set()
        assert (await second).known

    asyncio.run(asyncio.wait_for(scenario(), 60))


# --- the memory cgroup -------------------------------------------------------------------------------------


def write(directory: Path, **files):
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(f"{text}\n")


@pytest.fixture
def proc(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    return tmp_path / "proc"


def test_the_tightest_cgroup_above_the_daemon_counts(proc, tmp_path):
    (proc / "self/cgroup").write_text("0::/system.slice/swapd.service\n")
    root = tmp_path / "cgroup"
    stat = "anon 5\nactive_file 100\ninactive_file 50"
    write(root / "system.slice/swapd.service", memory__max="max", memory__current=1000, memory__stat=stat)
    write(root / "system.slice", memory__max=4000, memory__current=3000, memory__stat=stat)
    assert cgroup_room(proc, (root,), tmp_path / "none") == (4000, 1150)


def test_a_container_sees_its_limit_at_the_root(proc, tmp_path):
    (proc / "self/cgroup").write_text("0::/../../elsewhere\n")
    write(tmp_path / "cgroup", memory__max=4000, memory__current=4000, memory__stat="active_file 0")
    assert cgroup_room(proc, (tmp_path / "cgroup",), tmp_path / "none") == (4000, 0)


def test_version_1_limits_count_too(proc, tmp_path):
    (proc / "self/cgroup").write_text("4:memory:/a/b\n0::/\n")
    v1 = tmp_path / "v1"
    unlimited = {"memory__limit_in_bytes": (1 << 63) - 4096, "memory__usage_in_bytes": 10, "memory__stat": ""}
    write(v1, **unlimited)
    write(v1 / "a", memory__limit_in_bytes=500, memory__usage_in_bytes=400, memory__stat="total_active_file 30")
    write(v1 / "a/b", **unlimited)
    assert cgroup_room(proc, (tmp_path / "none",), v1) == (500, 130)


def test_no_cgroup_is_no_limit(proc, tmp_path):
    assert cgroup_room(proc, (tmp_path,), tmp_path) is None
    (proc / "self/cgroup").write_text("0::/\n")
    write(tmp_path / "cgroup", memory__max="max", memory__current=3)
    assert cgroup_room(proc, (tmp_path / "cgroup",), tmp_path) is None


def test_the_quick_look_never_promises_more_than_is_there(weights, process):
    """By counters alone: shared pages count for each who maps them, so what it says is a lower bound."""
    budget = 1 << 30
    process.do("anon(40)")
    process.do("shared(20)")
    process.do(f"file({str(weights)!r})")
    process.fork()
    host = HostMemory()
    least = host.free_at_least(budget, process.pids)
    reading = host.read("ram", budget, 0, {"w": process.pids})
    assert least <= reading.free_bytes + SLACK
    assert least >= reading.free_bytes - (40 + 20 + SIZE_MIB + 60) * MIB, "the fork's pages and the libraries, twice"
    assert host.free_at_least(1 * MIB, process.pids) < 0, "an overdrawn budget"
    assert host.free_at_least(budget, [2**22 + 1]) == budget, "of a process that is gone nothing counts"
    in_all = host.read("ram", None, 0, {"w": process.pids}).free_bytes
    assert 0 < host.free_beside_files() <= in_all + 256 * MIB, "others come and go meanwhile"
