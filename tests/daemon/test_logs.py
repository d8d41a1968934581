"""`swapd-cli logs`: what a worker wrote, also of one that has just died, and without a gap."""

import contextlib
import subprocess
import sys
import threading

import pytest
from support.daemon_host import Daemon, Refused, model, until

from swapd.host.logs import cap


def command(daemon, *arguments):
    return [sys.executable, "-m", "swapd.cli.main", "--connect", f"ipc://{daemon.dir}/r/control.sock", *arguments]


def cli(daemon, *arguments):
    return subprocess.run(command(daemon, *arguments), capture_output=True, text=True, timeout=30)


def offline(daemon, *arguments):
    return cli(daemon, "--offline", "--config", str(daemon.config), *arguments)


@contextlib.contextmanager
def following(daemon, *arguments):
    """The lines that `logs -f` has shown so far."""
    lines = []
    with subprocess.Popen(command(daemon, "logs", "-f", *arguments), stdout=subprocess.PIPE, text=True) as process:
        reader = threading.Thread(target=lambda: [lines.append(line.rstrip("\n")) for line in process.stdout])
        reader.start()
        try:
            yield process, lines
        finally:
            process.kill()
            reader.join(10)


def test_in_a_crash_loop_the_log_is_that_of_the_worker_that_crashed():
    daemon = Daemon([model("a", FAIL="exit")])
    try:
        daemon.start(healthy=False)
        until(lambda: daemon.service()["failures"] >= 4, what="the fourth failure")  # the next start is 2 s away
        assert "I cannot find my weights" in cli(daemon, "logs", "chat").stdout
    finally:
        daemon.__exit__()


def test_a_service_without_any_log_says_so():
    daemon = Daemon([model("a", memory="9GiB")])  # has no room: none of its workers is ever started
    try:
        daemon.start(healthy=False)
        result = cli(daemon, "logs", "chat")
        assert result.returncode == 4
        assert "No worker of chat has a log" in result.stderr
        with pytest.raises(Refused) as caught:
            daemon.call("logs", target="chat")
        assert caught.value.code == "UNKNOWN_WORKER"
    finally:
        daemon.__exit__()


def test_following_a_service_over_a_crash_loses_no_line():
    with Daemon([model("a", LEAK="of the next worker")]) as daemon, following(daemon, "chat", "-n", "0") as (it, lines):

        def said():
            daemon.get("/say?line=hello")
            return "hello" in lines

        until(said, what="the first line")
        assert set(lines) == {"hello"}, "with -n 0 nothing of the past is shown"
        with pytest.raises((OSError, EOFError)):
            daemon.get("/last_words?line=I-give-up")
        until(lambda: "the token is of the next worker" in lines, what="the next worker's line")
        changed = next(index for index, line in enumerate(lines) if line.startswith("==> chat-"))
        assert lines[changed - 1] == "I-give-up"
        assert it.poll() is None


def test_none_is_not_the_default():
    with Daemon([model("a"), model("b")]) as daemon:
        daemon.swap("b")
        assert daemon.call("history", limit=0) == []
        assert len(daemon.call("history", limit=1)) == len(daemon.call("history")) == 1
        assert daemon.call("logs", target="chat", lines=0)["lines"] == []
        assert daemon.call("logs", target="chat")["lines"]
        assert cli(daemon, "logs", "chat", "-n", "0").stdout == ""
        assert "chat" not in cli(daemon, "history", "-n", "0").stdout


def test_following_a_worker_over_rotations_of_its_log_loses_no_line():
    with Daemon([model("a")], daemon='log_rotate = 2\nlog_max_size = "1MiB"') as daemon:
        [worker] = [w["id"] for w in daemon.call("workers") if w["role"] == "stable"]
        log = daemon.dir / f"s/logs/{worker}.log"
        with following(daemon, "chat", "-n", "0") as (_, lines):

            def said():
                daemon.get("/say?line=begun")
                return "begun" in lines

            until(said, what="the first line")
            expected = []

            def say(count):
                for _ in range(count):
                    expected.append(f"line-{len(expected)}")
                    daemon.get(f"/say?line={expected[-1]}")

            for _ in range(3):
                say(30)
                until(lambda: lines[-1:] == expected[-1:], what="what was there long before")
                say(5)
                assert cap(log, 100, keep=2)  # the follower has not asked for all of these yet
                say(2)
                until(lambda: lines[-1:] == expected[-1:], what="the last line")
            assert [line for line in lines if line.startswith("line-")] == expected
            assert (log.parent / f"{log.name}.2").exists()


def test_logs_lie_and_are_rotated_where_the_settings_say(tmp_path):
    settings = f'log_dir = "{tmp_path}/logs"\nlog_max_size = "1MiB"\nlog_rotate = 3'
    with Daemon([model("a", CHATTER=str(3 << 20))], daemon=settings) as daemon:
        [log] = (tmp_path / "logs").glob("chat-?.log")
        until(lambda: (tmp_path / f"logs/{log.name}.1").exists(), what="the rotation")
        assert not (daemon.dir / "s/logs").exists()
        daemon.get("/say?line=after-it")
        until(lambda: "after-it" in cli(daemon, "logs", "chat").stdout, what="its line")
        assert "after-it" in offline(daemon, "logs", "chat").stdout
