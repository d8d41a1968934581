"""Events told to real receivers by a real daemon: that take them, fail first, hang, and change."""

import asyncio
import contextlib
import http.server
import json
import stat
import sys
import threading
from collections import Counter

import pytest
from support.daemon_host import Crowd, Daemon, model, until

from swapd.core.config import NotifyConfig
from swapd.core.redact import Redactor
from swapd.daemon import notices
from swapd.daemon.notices import Receiver


class Hook:
    """An HTTP server that keeps what it gets. It fails the first `failing` times; while `hangs`, it answers nobody."""

    def __init__(self, *, failing=0, hangs=False, answer=200):
        self.got, self.headers, self.attempts = [], [], 0
        self.free = threading.Event()
        if not hangs:
            self.free.set()
        hook = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                hook.attempts += 1
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                hook.free.wait(60)
                fails = hook.attempts <= failing
                if not fails:
                    hook.got.append(body)
                    hook.headers.append(dict(self.headers))
                with contextlib.suppress(OSError):
                    self.send_response(500 if fails else answer)
                    self.end_headers()

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/swapd"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.free.set()
        self._server.shutdown()
        self._server.server_close()

    def events(self):
        return [(each["event"], each.get("phase") or each.get("health")) for each in self.got]


def daemon_with(blocks, **more):
    """A daemon with these [notify.…] tables, and models a and b."""
    return Daemon([model("a"), model("b"), blocks], **more)


def block(name, on, **keys):
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in {"on": on, **keys}.items())
    return f"[notify.{name}]\n{lines}\n"


def test_a_webhook_gets_what_it_asked_for_with_its_headers_and_an_id(tmp_path):
    secret = tmp_path / "headers"
    secret.write_text("# for the hook\nAuthorization: Bearer hunter2222\n")
    secret.chmod(stat.S_IRUSR)
    with Hook() as hook:
        on = ["swap.finished", "swap.soaking", "service.healthy"]
        blocks = block("pager", on, url=hook.url, headers_file=str(secret))
        with daemon_with(blocks, service='soak = "1s"') as daemon:
            record = daemon.swap("b")
            daemon.wait(record["id"], ("Succeeded",))
            until(lambda: ("swap.finished", "Succeeded") in hook.events(), what="the event")
            log = daemon.output.read_text()
        assert hook.events()[-2:] == [("swap.phase", "Soaking"), ("swap.finished", "Succeeded")]
        assert {event for event, _ in hook.events()} <= {"swap.finished", "swap.phase", "service.health"}
        assert len({each["id"] for each in hook.got}) == len(hook.got)
        assert hook.got[-1]["service"] == "chat"
        assert hook.got[-1]["swap_id"] == record["id"]
        assert "Succeeded" in hook.got[-1]["text"]
        assert hook.headers[-1]["Authorization"] == "Bearer hunter2222"
        assert "hunter2222" not in log


def test_a_receiver_that_fails_is_told_again_with_the_same_id_and_in_order():
    with Hook(failing=2) as hook, daemon_with(block("pager", ["service.health"], url=hook.url)) as daemon:
        until(lambda: ("service.health", "Healthy") in hook.events(), what="the event")
        assert hook.attempts >= 3
        assert [each["id"].rpartition("-")[2] for each in hook.got] == [str(n + 1) for n in range(len(hook.got))]
        assert "notify.retried notify=pager" in daemon.output.read_text()


def test_receivers_that_hang_refuse_or_are_not_there_delay_nobody():
    blocks = block("gone", ["swap.step"], url="http://127.0.0.1:1/x")
    with Hook(hangs=True) as hangs, Hook(answer=404) as refuses, Hook() as well:
        for name, hook in (("hangs", hangs), ("refuses", refuses), ("well", well)):
            blocks += block(name, ["swap.step", "swap.soaking"], url=hook.url)
        with daemon_with(blocks) as daemon, Crowd(daemon.port) as crowd:
            assert daemon.swap("b")["phase"] == "Soaking"
            until(lambda: ("swap.phase", "Soaking") in well.events(), what="the event at the one that is well")
            until(lambda: "notify.failed notify=refuses" in daemon.output.read_text(), what="a line in the log")
            crowd.more()
            hangs.free.set()
            until(lambda: ("swap.phase", "Soaking") in hangs.events(), what="what waited")
        crowd.check()


@pytest.mark.parametrize("elsewhere", [True, False])
def test_a_program_is_told_and_what_it_leaves_is_ended_in_whatever_session_it_is(tmp_path, elsewhere):
    got, pids = tmp_path / "got", tmp_path / "pids"
    program = tmp_path / "tell"
    program.write_text(
        "import subprocess, sys\n"
        f"open({str(got)!r}, 'a').write(sys.stdin.read() + chr(10))\n"
        f"left = subprocess.Popen(['sleep', '600'], start_new_session={elsewhere})\n"
        f"open({str(pids)!r}, 'a').write(f'{{left.pid}} ')\n"
    )
    with daemon_with(block("script", ["service.healthy"], command=[sys.executable, str(program), "x"])):
        until(got.exists, what="the event")
        told = json.loads(until(lambda: got.read_text(), what="its text").splitlines()[0])
        assert (told["event"], told["health"]) == ("service.health", "Healthy")
        until(lambda: pids.exists() and pids.read_text(), what="its child")
        until(lambda: not alive(int(pids.read_text().split()[0])), what="the end of its child")


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_reload_changes_who_is_told():
    models = [model("a"), model("b")]
    with Hook() as first, Hook() as second, Daemon([*models, block("x", ["swap.phase"], url=first.url)]) as daemon:
        daemon.write([*models, block("x", ["swap.phase"], url=second.url)])
        assert [c["key"] for c in daemon.call("reload")["changes"]] == ["notify.x.url"]
        daemon.swap("b")
        until(lambda: ("swap.phase", "Soaking") in second.events(), what="the event at the new address")
        assert ("swap.phase", "Soaking") not in first.events()


def test_a_file_of_headers_that_others_can_read_is_refused(tmp_path):
    secret = tmp_path / "headers"
    secret.write_text("Authorization: x\nnonsense\n")
    secret.chmod(0o644)
    daemon = daemon_with(block("x", ["swap.phase"], url="http://127.0.0.1:1/", headers_file=str(secret)))
    with pytest.raises(AssertionError, match="chmod 600"):
        daemon.start()
    daemon.process.wait(20)
    assert "line 2: is not Name: value" in daemon.output.read_text()
    daemon.__exit__()


def receiver(**keys):
    config = NotifyConfig(name="x", on=("swap.phase",), **keys)
    return Receiver(config, Redactor, Counter())


def test_what_waits_is_bounded_and_the_oldest_gives_way(monkeypatch):
    monkeypatch.setattr(notices, "MAX_QUEUED", 3)

    async def main():
        with Hook(hangs=True) as hook:
            one = receiver(url=hook.url)
            one.take("0", b'{"id": 0}')
            await asyncio.to_thread(until, lambda: hook.attempts, what="the first attempt")
            for number in range(1, 6):
                one.take(str(number), b'{"id": %d}' % number)
            assert (one.queued, one.counts["dropped"]) == (3, 3)
            hook.free.set()
            await asyncio.wait_for(one.idle.wait(), 20)
            await one.close()
            assert [each["id"] for each in hook.got] == [0, 3, 4, 5]
            assert one.counts["delivered"] == 4

    asyncio.run(main())


def test_it_is_given_up_after_its_attempts_and_the_next_is_told(monkeypatch):
    monkeypatch.setattr(notices, "pause_s", lambda failures: 0.0)

    async def main():
        with Hook(failing=3) as hook:
            one = receiver(url=hook.url, attempts=3)
            one.take("0", b'{"id": 0}')
            one.take("1", b'{"id": 1}')
            await asyncio.wait_for(one.idle.wait(), 20)
            await one.close()
            assert [each["id"] for each in hook.got] == [1]
            assert dict(one.counts) == {"failed": 1, "delivered": 1}

    asyncio.run(main())
