from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.process_waiting import wait_until

from swapd.host import logs


@pytest.fixture
def log(tmp_path) -> Path:
    return tmp_path / "chat-3.log"


def write(log: Path, data: bytes) -> None:
    with log.open("ab") as file:
        file.write(data)


# --- tail --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "lines", "expected"),
    [
        (b"", 10, []),
        (b"a\nb\nc\n", 2, ["b", "c"]),
        (b"a\nb\nc", 2, ["b", "c"]),
        (b"a\nb\n", 10, ["a", "b"]),
        (b"a\n\n\n", 2, ["", ""]),
        (b"a\n", 0, []),
        (b"loss \xff\xc3(\n\x00\xe2\x82", 5, ["loss \ufffd\ufffd(", "\x00\ufffd"]),
        ("grüße\n".encode() * 3, 1, ["grüße"]),
    ],
)
def test_tail_gives_the_last_lines(log, data, lines, expected):
    write(log, data)
    assert logs.tail(log, lines) == expected


def test_tail_of_no_log_is_empty(log):
    assert logs.tail(log, 10) == []


def test_tail_reads_across_blocks(log):
    write(log, b"".join(b"line %d\n" % number for number in range(20_000)))
    assert logs.tail(log, 5000) == [f"line {number}" for number in range(15_000, 20_000)]


def test_tail_is_bounded_and_shows_no_half_line(log):
    write(log, b"x" * 1000 + b"\n" + b"y" * 80 + b"\nend\n")
    assert logs.tail(log, 100, max_bytes=100) == ["y" * 80, "end"]


def test_tail_since_an_offset_has_what_was_begun_after_it(log):
    write(log, b"before\nhal")
    at = log.stat().st_size
    assert logs.tail(log, 10, since=at) == []
    write(log, b"f\nafter\n")
    assert logs.tail(log, 10, since=at) == ["after"]
    assert logs.tail(log, 10, since=len(b"before\n")) == ["half", "after"]
    assert logs.tail(log, 10, since=1000) == ["before", "half", "after"], "it was rotated since"


def test_tail_shows_the_end_of_a_line_longer_than_the_bound(log):
    write(log, b"x" * 1_000_000)
    assert logs.tail(log, 3, max_bytes=100) == ["x" * 100]


def test_tail_of_a_sparse_giant_reads_only_its_end(log):
    with log.open("wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 40)
        file.write(b"\nthe end\n")
    assert logs.tail(log, 1) == ["the end"]


# --- following ---------------------------------------------------------------------------------------------


def test_following_gives_every_line_once_and_whole(log):
    offset = logs.read_end(log, 0).offset
    assert logs.read_from(log, offset) == logs.LogChunk("", 0)
    write(log, b"a\nhal")
    chunk = logs.read_from(log, offset)
    assert chunk == logs.LogChunk("a\n", 2)
    assert logs.read_from(log, chunk.offset).text == ""
    write(log, b"f \xe2\x82")
    assert logs.read_from(log, chunk.offset).text == ""
    write(log, b"\xac\n")
    assert logs.read_from(log, chunk.offset).text == "half €\n"
    assert logs.read_end(log, 0).offset == logs.read_from(log, chunk.offset).offset


def test_following_goes_on_where_the_last_lines_end(log):
    write(log, b"a\nb\nhal")
    assert logs.read_end(log, 2) == logs.LogChunk("b\nhal\n", 4)
    assert logs.read_end(log, 0) == logs.LogChunk("", 4)
    write(log, b"f\nc\n")
    assert logs.read_from(log, 4) == logs.LogChunk("half\nc\n", 11), "the line that was not whole is given again"


def test_the_last_line_of_an_ended_worker_needs_no_end(log):
    write(log, b"a\nlast words")
    assert logs.read_end(log, 2, ended=True) == logs.LogChunk("a\nlast words\n", 12)
    assert logs.read_from(log, 0, ended=True) == logs.LogChunk("a\nlast words", 12)
    assert logs.read_from(log, 12, ended=True) == logs.LogChunk("", 12)
    assert logs.read_from(log, 0, max_bytes=6, ended=True) == logs.LogChunk("a\n", 2)


def test_following_comes_in_bounded_pieces(log):
    write(log, b"12345678\n" * 10 + b"x" * 50)
    offset, texts = 0, []
    while (chunk := logs.read_from(log, offset, max_bytes=20)).text:
        assert len(chunk.text) <= 20
        texts.append(chunk.text)
        offset = chunk.offset
    assert "".join(texts) == "12345678\n" * 10 + "x" * 40  # the last ten may still become a line
    assert texts[0] == "12345678\n" * 2


def test_following_a_log_that_was_cut_starts_again(log):
    write(log, b"old\n" * 10)
    offset = logs.read_end(log, 0).offset
    os.truncate(log, 0)
    write(log, b"new\n")
    assert logs.read_from(log, offset) == logs.LogChunk("new\n", 4, restarted=True)
    log.unlink()
    assert logs.read_from(log, 4) == logs.LogChunk("", 0, restarted=True)


# --- bounds ------------------------------------------------------------------------------------------------


def test_only_the_newest_logs_of_each_service_are_kept(tmp_path):
    for name in ("chat-1", "chat-2", "chat-10", "chat-11", "chat-gate-3", "chat-gate-4", "my-chat-1", "a-7"):
        (tmp_path / f"{name}.log").touch()
    (tmp_path / "chat-1.log.1").touch()
    (tmp_path / "chat-1.log.2").touch()
    (tmp_path / "notes.txt").touch()
    assert logs.prune(tmp_path, keep_per_service=1, running=["chat-2"]) == ["chat-1", "chat-10", "chat-gate-3"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a-7.log",
        "chat-11.log",
        "chat-2.log",
        "chat-gate-4.log",
        "my-chat-1.log",
        "notes.txt",
    ]


def test_pruning_what_is_not_there_is_no_error(tmp_path):
    assert logs.prune(tmp_path / "none", keep_per_service=3) == []


def test_a_log_under_its_cap_is_left_alone(log):
    assert not logs.cap(log, 100)
    write(log, b"x" * 100)
    assert not logs.cap(log, 100)
    assert log.stat().st_size == 100


@pytest.fixture(params=["taken off", "cut"])
def rotation(request, tmp_path, monkeypatch):
    """Both ways to rotate."""
    if request.param == "cut":
        monkeypatch.setattr(logs, "_collapse", lambda descriptor, size: False)
        return "cut"
    probe = tmp_path / "probe"
    probe.write_bytes(b"x" * 10_000)
    with probe.open("r+b") as file:
        if not logs._collapse(file.fileno(), 4096):
            pytest.skip("this file system cannot take off the beginning of a file")
    probe.unlink()
    return "taken off"


def formers(log):
    return sorted(each.name for each in log.parent.glob("*.log.*"))


WRITER = """
import os, sys
log, number = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT), 0
while True:
    number += 1
    os.write(log, b"line %d of many\\n" % number)
"""


def test_what_a_worker_writes_during_rotations_is_all_there_and_in_order(log, rotation):
    with subprocess.Popen([sys.executable, "-c", WRITER, str(log)]) as writer:
        for _ in range(5):
            wait_until(lambda: log.exists() and log.stat().st_size > 200_000)
            assert logs.cap(log, log.stat().st_size - 1, keep=100)  # of one twice its limit some is left out
        writer.kill()
    former = [log.with_name(f"{log.name}.{number}").read_bytes() for number in range(5, 0, -1)]
    written = b"".join([*former, log.read_bytes()])
    assert b"\0" not in written
    whole = [match for line in written.splitlines() if (match := re.fullmatch(rb"line (\d+) of many", line))]
    numbers = [int(match[1]) for match in whole]
    if rotation == "taken off":
        assert numbers == list(range(1, len(written.splitlines()) + 1))
    else:  # one that is written at that instant may be lost
        assert numbers == sorted(set(numbers))


def test_whoever_follows_over_rotations_misses_nothing(log, rotation):
    lines, offset = [], 0
    expected = [f"line {number} {'x' * (number % 90)}" for number in range(3000)]
    for number, line in enumerate(expected):
        write(log, line.encode() + b"\n")
        if number % 7 == 0:
            chunk = logs.read_from(log, offset, max_bytes=1000)
            assert not chunk.restarted
            lines, offset = lines + chunk.text.splitlines(), chunk.offset
        logs.cap(log, 20_000, keep=2)
    while (chunk := logs.read_from(log, offset, max_bytes=1000)).text:
        lines, offset = lines + chunk.text.splitlines(), chunk.offset
    assert lines == expected
    assert formers(log) == ["chat-3.log.1", "chat-3.log.2"]


def test_the_last_lines_reach_back_over_a_rotation(log, rotation):
    expected = [f"line {number}" for number in range(3000)]
    write(log, "".join(f"{line}\n" for line in expected).encode())
    assert logs.cap(log, 20_000)
    assert logs.tail(log, 2000) == expected[-2000:]
    write(log, b"more\nhal")
    end = logs.read_end(log, 3)
    assert end.text.splitlines() == [expected[-1], "more", "hal"]
    write(log, b"f\n")
    assert logs.read_from(log, end.offset).text == "half\n"


def test_a_line_begun_before_a_rotation_is_given_whole(log, rotation):
    write(log, b"x" * 9_000 + b"\n" + b"y" * 9_000)
    offset = logs.read_from(log, 0).offset
    assert logs.cap(log, 10_000)
    end = logs.read_end(log, 1)
    write(log, b"z\n")
    assert logs.read_from(log, offset).text == "y" * 9_000 + "z\n"
    assert logs.read_from(log, end.offset).text == "y" * 9_000 + "z\n"


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_so_many_former_files_are_kept(log, rotation, keep):
    for number in range(5):
        write(log, b"%d" % number * 9_999 + b"\n")
        assert logs.cap(log, 9_000, keep=keep)
    assert formers(log) == [f"chat-3.log.{number}" for number in range(1, keep + 1)]
    if keep:
        assert log.with_name("chat-3.log.1").stat().st_mode & 0o777 == 0o640
    write(log, b"x" * 20_000)
    assert logs.cap(log, 9_000, keep=1)
    assert formers(log) == ["chat-3.log.1"], "the setting has become smaller"


def test_a_log_that_outgrew_its_cap_by_far_does_not_fill_the_disk_twice(log, rotation):
    write(log, b"x" * 1_000_000)
    assert logs.cap(log, 10_000)
    assert log.with_name("chat-3.log.1").stat().st_size <= 20_000
    assert log.stat().st_size <= 10_000


def test_following_a_log_that_lost_what_was_before_says_so(log, rotation):
    write(log, b"x" * 99_999 + b"\n")
    assert logs.cap(log, 10_000, keep=0)
    write(log, b"new\n")
    chunk = logs.read_from(log, 100_000)
    assert chunk.restarted
    assert chunk.text.endswith("new\n")


def test_a_log_smaller_than_a_block_is_rotated_as_well(log, rotation):
    write(log, b"x" * 500 + b"\n")
    assert logs.cap(log, 100)
    assert log.stat().st_size == 0
    assert log.with_name("chat-3.log.1").read_bytes() == b"x" * 500 + b"\n"
