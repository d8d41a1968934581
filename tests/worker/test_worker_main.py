"""The process: signals, its log, its limits, and the death of its parent."""

import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support.worker_client import LAUNCH, REPO, UnixHttp, ask_once, wait_until

from swapd.worker import main as worker_main

LINE = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (INFO|WARNING|ERROR) [a-z._]+ \S")


def test_sigterm_ends_an_idle_worker_properly(spawn):
    worker = spawn()
    worker.loaded()
    worker.process.send_signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert "echo_app: lifespan shutdown" in worker.log


def test_a_second_sigterm_ends_at_once(spawn):
    worker = spawn("engines_app:HangsEndForEver")
    worker.loaded()
    worker.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "unload begins" in worker.log, "the end hangs")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.wait() == 128 + signal.SIGTERM


def test_sigterm_during_a_load_ends_the_worker(spawn):
    worker = spawn("engines_app:HangsLoad")
    client = worker.greeted()
    client.send("load")
    wait_until(lambda: client.request("stats")["state"] == "loading", "loading")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.wait() == 0


def test_sigint_is_the_daemons_business_not_a_workers(spawn):
    worker = spawn()
    client = worker.loaded()
    worker.process.send_signal(signal.SIGINT)
    assert client.request("stats")["state"] == "loaded"
    assert ask_once(worker.http)[0] == 200


def test_the_models_children_do_not_inherit_ignored_signals(spawn, tmp_path):
    (tmp_path / "children.py").write_text(
        textwrap.dedent("""
            import subprocess, sys
            code = "import signal; print([s.name for s in (signal.SIGINT, signal.SIGTERM) "
            code += "if signal.getsignal(s) is signal.SIG_IGN], signal.pthread_sigmask(signal.SIG_BLOCK, []))"
            class Engine:
                def load(self):
                    subprocess.run([sys.executable, "-c", code], check=True)
                async def app(self, scope, receive, send):
                    raise NotImplementedError
        """)
    )
    worker = spawn("children:Engine", directory=tmp_path)
    worker.loaded()
    assert "[] set()" in worker.log


def test_a_workers_life_does_not_depend_on_its_parent(spawn, tmp_path):
    worker = spawn(prefix=(sys.executable, "-c", _PARENT))
    client = worker.loaded()
    pid = client.hello(worker.id)["pid"]
    assert pid != worker.process.pid
    worker.process.kill()
    worker.wait()
    assert ask_once(worker.http)[0] == 200
    again = worker.dir  # connect() would look at the parent
    from support.worker_client import Client

    client = Client(again / "control.sock")
    client.hello(worker.id)
    client.request("stop")
    assert client.at_end()
    client.close()


_PARENT = "import subprocess, sys; subprocess.run(sys.argv[1:], start_new_session=True)"


def test_the_log_is_one_line_an_event_and_has_no_access_log(spawn):
    worker = spawn("failing_lifespan_app:has_none")
    client = worker.loaded()
    for _ in range(3):
        assert ask_once(worker.http, "/find-me")[0] == 204
    client.request("stop")
    assert worker.wait() == 0
    lines = worker.log.splitlines()
    assert lines
    assert [line for line in lines if not LINE.match(line)] == []
    assert "find-me" not in worker.log


def test_a_message_of_many_lines_becomes_one(capsys):
    record = logging.LogRecord("swapd.worker", logging.INFO, "x", 1, "first\n  second\n", (), None)
    assert worker_main._OneLine().format(record).endswith("INFO swapd.worker first second")


def test_the_soft_limit_of_open_files_is_raised(spawn):
    worker = spawn(prefix=("prlimit", "--nofile=256:4096"))
    worker.loaded()
    pid = int(re.search(r"pid=(\d+)", worker.log)[1])
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert re.search(r"Max open files\s+4096\s+4096", limits)


def test_a_gates_spec_needs_the_flag_and_no_other_has_it(spawn):
    worker = spawn(kind="gate")
    worker.greeted().request("stop")
    worker.wait()
    done = subprocess.run(
        [sys.executable, str(LAUNCH), str(worker.dir)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 78
    assert "needs --gate" in done.stderr


@pytest.mark.parametrize("limit_s", [0.05])
def test_the_watchdog_ends_a_process_that_hangs(limit_s):
    code = f"""
        import threading
        from swapd.worker.main import watchdog
        watchdog({limit_s}, 7)
        threading.Event().wait()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )
    assert done.returncode == 7
    assert "did not end in time" in done.stderr


def test_atexit_functions_of_the_model_run_and_output_is_flushed(spawn, tmp_path):
    (tmp_path / "atexits.py").write_text(
        textwrap.dedent("""
            import atexit, sys
            atexit.register(lambda: sys.stdout.write("atexit ran"))
            async def app(scope, receive, send):
                raise NotImplementedError
        """)
    )
    worker = spawn("atexits:app", directory=tmp_path)
    worker.loaded().request("stop")
    assert worker.wait() == 0
    assert "atexit ran" in worker.log


def test_an_open_connection_does_not_keep_a_stopping_worker(spawn):
    worker = spawn()
    client = worker.loaded()
    connection = UnixHttp(worker.http)
    connection.request("GET", "/")
    assert connection.getresponse().read()
    client.request("stop")
    assert worker.wait() == 0
    connection.close()
