"""Workers as transient services of a real systemd, by way of `host.units` in a process that stands for the daemon."""

from __future__ import annotations

import itertools
import json
import signal
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.process_waiting import wait_until
from support.systemd_host import PROJECT, SystemdHost

from swapd.core.errors import COMMAND_NOT_FOUND, SPAWN_FAILED
from swapd.core.process_tree import UNKNOWN_EXIT

pytestmark = pytest.mark.systemd
PYTHON = "/usr/bin/python3"
FOREVER = "import signal; signal.pause()"


class Daemon:
    """A process with a `Units` of its own."""

    def __init__(self, host: SystemdHost) -> None:
        self.host = host
        driver = host.inside(PROJECT / "tests" / "support" / "process_units.py")
        environment = [f"PYTHONPATH={host.inside(PROJECT)}", "PYTHONDONTWRITEBYTECODE=1"]
        self.process = host.popen("env", *environment, host.python, str(driver))
        self.missing = self._read()["missing"]

    def _read(self):
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the driver has ended"
        return json.loads(line)

    def call(self, call, **asked):
        """Raises AssertionError with the code of a refusal in front."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"call": call, **asked}) + "\n")
        self.process.stdin.flush()
        answer = self._read()
        if "code" in answer:
            raise AssertionError(f"{answer['code']}: {answer['message']}")
        return answer["answer"]

    def spawn(self, name="chat-1", *, code=FOREVER, arguments=(), env=None, confinement=None, **more):
        directory = f"/run/swapd/w/{name}"
        self.host.run("rm", "-rf", directory)
        self.host.run("mkdir", "-p", directory)
        return self.call(
            "spawn",
            name=name,
            marker=more.pop("marker", f"{name}:0a"),
            argv=more.pop("argv", [PYTHON, "-c", code, *arguments]),
            env=env or {},
            cwd=more.pop("cwd", None),
            log_path=f"/var/log/{name}.log",
            directory=directory,
            confinement={"user": "swapd", "group": "swapd-workers", **(confinement or {})},
        )

    def kill(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def host(systemd, tmp_path_factory):
    sysusers = (PROJECT / "systemd" / "swapd.sysusers.conf").read_text()
    units = {"swapd-workers.slice": (PROJECT / "systemd" / "swapd-workers.slice").read_text()}
    with SystemdHost(
        tmp_path_factory.mktemp("host"),
        units=units,
        files={"/etc/sysusers.d/swapd.conf": sysusers},
        prepare="systemd-sysusers /etc/sysusers.d/swapd.conf; useradd --system llm",
    ) as host:
        yield host


@pytest.fixture
def daemon(host):
    daemon = Daemon(host)
    yield daemon
    daemon.kill()
    host.systemctl("stop", "swapd-workers.slice")
    host.systemctl("reset-failed", "swapd-*.service", check=False)
    host.run("sh", "-c", "rm -rf /run/swapd /var/log/*-1.log /var/cache/swapd")


def log_of(host, name="chat-1"):
    return host.path(f"/var/log/{name}.log").read_text()


def units_of(host):
    return host.systemctl("list-units", "--all", "--no-legend", "--plain", "swapd-*.service").split()


def test_a_worker_runs_as_its_user_in_its_slice_and_writes_its_log(host, daemon):
    told = daemon.spawn(code="import os; print('here', os.getuid(), flush=True); " + FOREVER)
    assert told["alive"]
    assert told["exit_code"] is None
    wait_until(lambda: log_of(host), "its first line")
    assert log_of(host) == f"here {host.run('id', '-u', 'swapd').strip()}\n"
    assert host.show("swapd-chat-1.service", "ControlGroup") == "/swapd.slice/swapd-workers.slice/swapd-chat-1.service"
    assert host.pid("swapd-chat-1.service") == told["pid"]


@pytest.mark.parametrize(
    ("end", "code", "text"),
    [
        ("raise SystemExit(0)", 0, "exit code 0"),
        ("raise SystemExit(7)", 7, "exit code 7"),
        (f"import os; os.kill(os.getpid(), {signal.SIGSEGV:d})", -signal.SIGSEGV, "killed by SIGSEGV"),
    ],
)
def test_how_it_ended_is_told_also_to_a_daemon_that_was_away(host, daemon, end, code, text):
    told = daemon.spawn(code=f"import time; time.sleep(0.3); {end}")
    assert daemon.call("wait", name="chat-1")["exit_code"] == code
    daemon.kill()
    later = Daemon(host)
    try:
        found = later.call("find", name="chat-1", marker="chat-1:0a")
        assert (found["alive"], found["exit_code"], found["exit_text"]) == (False, code, text)
        assert found["pid"] == told["pid"]
        later.call("kill_tree", name="chat-1", grace_s=0)
        assert units_of(host) == [], "nothing of it is remembered"
        assert later.call("find", name="chat-1", marker="chat-1:0a") is None
    finally:
        later.kill()


def test_a_worker_outlives_its_daemon_and_is_found_by_the_next(host, daemon):
    told = daemon.spawn()
    daemon.kill()
    later = Daemon(host)
    try:
        found = later.call("find", name="chat-1", marker="chat-1:0a")
        assert (found["alive"], found["pid"], found["start_time"]) == (True, told["pid"], told["start_time"])
        host.run("kill", "-9", str(told["pid"]))
        assert later.call("wait", name="chat-1")["exit_code"] == -signal.SIGKILL
    finally:
        later.kill()


def test_what_is_nobodys_is_left_alone_while_it_lives_and_forgotten_when_it_has_ended(host, daemon):
    daemon.spawn()
    daemon.spawn("ended-1", code="raise SystemExit(1)")
    daemon.call("wait", name="ended-1")
    daemon.kill()
    later = Daemon(host)
    try:
        assert later.call("find", name="chat-1", marker="chat-1:other") is None, "another's of the same name"
        assert host.show("swapd-chat-1.service", "SubState") == "running"
        assert host.show("swapd-ended-1.service", "LoadState") == "not-found"
    finally:
        later.kill()


def test_what_systemd_cannot_end_yet_holds_up_no_start(host, daemon):
    host.run("mkdir", "-p", "/run/systemd/system/swapd-ended-1.service.d")
    drop_in = host.path("/run/systemd/system/swapd-ended-1.service.d/slow.conf")
    drop_in.write_text("[Service]\nExecStopPost=/bin/sleep 1000\n")
    host.systemctl("daemon-reload")
    daemon.spawn()
    daemon.spawn("ended-1", code="raise SystemExit(1)")
    daemon.call("wait", name="ended-1")
    daemon.kill()
    later = Daemon(host)
    try:
        assert host.show("swapd-ended-1.service", "ActiveState") == "deactivating"
        assert later.call("find", name="chat-1", marker="chat-1:0a")["alive"]
    finally:
        later.kill()
        drop_in.unlink()
        host.systemctl("daemon-reload")
        host.systemctl("kill", "--signal=KILL", "swapd-ended-1.service")


def test_a_worker_that_somebody_stops_is_told_of(host, daemon):
    daemon.spawn()
    host.systemctl("stop", "swapd-chat-1.service")
    assert daemon.call("wait", name="chat-1")["exit_code"] in (-signal.SIGTERM, UNKNOWN_EXIT)


TREE = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:  # without a parent, in a session of its own, and with a scrubbed environment
            os.execve(sys.executable, [sys.executable, "-c", "import time; time.sleep(1000)"], {})
        os._exit(0)
print("ready", flush=True)
time.sleep(1000)
"""


def test_the_whole_tree_is_seen_and_ended(host, daemon):
    daemon.spawn(code=TREE)
    wait_until(lambda: log_of(host), "the tree")
    pids = wait_until(lambda: len(found := daemon.call("pids")["chat-1:0a"]) == 4 and found, "all of it")
    told = daemon.call("kill_tree", name="chat-1", grace_s=0.2)  # which it ignores
    assert told["exit_text"] == "killed by SIGKILL (sent by swapd)"
    assert not told["oom_killed"]
    assert [pid for pid in pids if host.path(f"/proc/{pid}").exists()] == []
    assert units_of(host) == []
    assert daemon.call("pids") == {"chat-1:0a": []}


def test_what_a_dead_worker_has_left_behind_is_ended(host, daemon):
    leave = "import subprocess; subprocess.Popen(['/bin/sleep', '1000'], start_new_session=True)"
    daemon.spawn(code=leave)
    assert daemon.call("wait", name="chat-1")["exit_code"] == 0
    assert len(daemon.call("pids")["chat-1:0a"]) == 1
    daemon.call("kill_tree", name="chat-1", grace_s=0)
    assert daemon.call("pids") == {"chat-1:0a": []}


def test_a_worker_may_end_by_itself_within_the_grace(host, daemon):
    daemon.spawn(
        code="import signal, sys; signal.signal(15, lambda *_: sys.exit(3)); print(1, flush=True); signal.pause()"
    )
    wait_until(lambda: log_of(host), "its handler")
    assert daemon.call("kill_tree", name="chat-1", grace_s=20)["exit_code"] == 3


def refused(daemon, **asked):
    with pytest.raises(AssertionError) as caught:
        daemon.spawn(**asked)
    return str(caught.value)


def test_what_cannot_start_is_refused_in_words_and_leaves_nothing(host, daemon):
    cases = [
        ({"argv": ["/none/python"]}, COMMAND_NOT_FOUND, "'/none/python' does not exist"),
        ({"argv": ["/etc/passwd"]}, COMMAND_NOT_FOUND, "is not executable"),
        ({"cwd": "/none"}, COMMAND_NOT_FOUND, "'/none' does not exist"),
        ({"confinement": {"user": "nosuch"}}, COMMAND_NOT_FOUND, 'no user "nosuch"'),
        ({"confinement": {"read_paths": ["/none"]}}, COMMAND_NOT_FOUND, "read_paths: '/none' does not exist"),
        ({"confinement": {"group": "nosuch"}}, COMMAND_NOT_FOUND, "no usable group"),
        ({"env": {"BAD-NAME": "1"}}, SPAWN_FAILED, "'BAD-NAME' is no name"),
    ]
    for asked, code, text in cases:
        said = refused(daemon, **asked)
        assert said.startswith(code), said
        assert text in said, said
        assert units_of(host) == []
    host.run("sh", "-c", "printf 'no program' > /usr/local/bin/broken; chmod +x /usr/local/bin/broken")
    said = refused(daemon, argv=["/usr/local/bin/broken"])
    assert said.startswith(COMMAND_NOT_FOUND)
    assert "not a program for this machine" in said


def test_a_name_that_is_taken_is_refused_and_one_that_has_ended_is_free(host, daemon):
    daemon.spawn(marker="chat-1:first")
    assert "runs already" in refused(daemon, marker="chat-1:second")
    host.run("kill", "-9", str(host.pid("swapd-chat-1.service")))
    daemon.call("wait", name="chat-1")
    assert daemon.spawn(marker="chat-1:second")["alive"]


# --- what it is told -----------------------------------------------------------------------------------------

_numbers = itertools.count(1)
SHOW = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"
NAMES = st.text(string.ascii_letters + "_", min_size=1, max_size=3).map(lambda name: f"X_{name}")
VALUES = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40),
    st.text("\"'\\$`%{}\n\r\t #;=HOME", max_size=20),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(env=st.dictionaries(NAMES, VALUES, max_size=20), arguments=st.lists(VALUES, max_size=5))
def test_environment_and_arguments_arrive_as_they_are(host, daemon, env, arguments):
    name = f"quoted-{next(_numbers)}"
    daemon.spawn(name, code=SHOW, env=env, arguments=arguments)
    assert daemon.call("wait", name=name)["exit_code"] == 0
    seen_arguments, seen_env = json.loads(log_of(host, name))
    assert seen_arguments == arguments
    assert {key: value for key, value in seen_env.items() if key.startswith("X_")} == env
    added = {"INVOCATION_ID", "SYSTEMD_EXEC_PID", "LANG", "PATH", "HOME", "LOGNAME", "USER", "SHELL", "SWAPD_WORKER"}
    assert seen_env.keys() - env.keys() <= added | {"LC_CTYPE"}
    daemon.call("kill_tree", name=name, grace_s=0)


def test_nobody_else_sees_its_environment(host, daemon):
    daemon.spawn(env={"TOKEN": "s3cret"}, code="import os; print(os.environ['TOKEN'], flush=True); " + FOREVER)
    wait_until(lambda: log_of(host), "its first line")
    assert log_of(host) == "s3cret\n"
    assert "s3cret" not in host.systemctl("show", "swapd-chat-1.service")
    file = host.path("/run/swapd/w/chat-1/environment")
    assert (file.stat().st_mode & 0o777, file.stat().st_uid) == (0o600, 0)


@pytest.mark.parametrize("name", ["plain", "a b", "a%h", "a$HOME", "a'b", "a:b", "a\\b"])
def test_paths_may_hold_what_systemd_gives_a_meaning(host, daemon, name):
    path = f"/srv/data/{name}"
    host.run("mkdir", "-p", path)
    host.run("chown", "swapd", path)
    code = "import os; print(os.getcwd()); open('written', 'w').close(); print(os.listdir('.'))"
    daemon.spawn(cwd=path, code=code, confinement={"write_paths": [path], "read_paths": [path]})
    assert daemon.call("wait", name="chat-1")["exit_code"] == 0, log_of(host)
    assert log_of(host) == f"{path}\n['written']\n"


# --- what it may do ------------------------------------------------------------------------------------------

LOOK = """
import json, os, sys, tempfile
def may(path, flags=os.O_RDONLY):
    try:
        os.close(os.open(path, flags))
        return True
    except OSError:
        return False
def written(directory):
    try:
        tempfile.TemporaryFile(dir=directory).close()
        return True
    except OSError:
        return False
print(json.dumps({
    "read": [path for path in sys.argv[1].split(",") if may(path)],
    "write": [path for path in sys.argv[2].split(",") if written(path)],
    "devices": [name for name in ("null", "urandom", "shm", "kmsg", "mem", "vda") if os.path.exists(f"/dev/{name}")],
    "capabilities": next(line.split()[1] for line in open("/proc/self/status") if line.startswith("CapBnd")),
    "others": len([pid for pid in os.listdir("/proc") if pid.isdigit()]),
}))
"""


def look(host, daemon, read, write, **confinement):
    daemon.spawn(code=LOOK, arguments=[",".join(read), ",".join(write)], confinement=confinement)
    assert daemon.call("wait", name="chat-1")["exit_code"] == 0, log_of(host)
    return json.loads(log_of(host))


def test_a_worker_sees_and_writes_what_it_should(host, daemon):
    for path in ("/srv/mine", "/srv/other", "/home/ana", "/srv/out"):
        host.run("mkdir", "-p", path)
        host.run("sh", "-c", f"echo x > {path}/f; chmod 755 {path}; chown swapd {path}")
    read = [
        "/etc/passwd",
        "/run/swapd/w/chat-1/environment",
        "/etc/shadow",
        "/srv/mine/f",
        "/srv/other/f",
        "/home/ana/f",
    ]
    write = [
        "/run/swapd/w/chat-1",
        "/var/cache/swapd/swapd",
        "/tmp",
        "/dev/shm",
        "/etc",
        "/srv/mine",
        "/srv/out",
        "/var/lib",
    ]
    cache = "/var/cache/swapd/swapd"
    seen = look(host, daemon, read, write, cache_dir=cache)
    assert seen["read"] == ["/etc/passwd", "/srv/mine/f", "/srv/other/f", "/home/ana/f"]
    assert seen["write"] == ["/run/swapd/w/chat-1", cache, "/tmp", "/dev/shm"]
    assert seen["devices"] == ["null", "urandom", "shm"]
    assert seen["capabilities"] == "0" * 16
    assert seen["others"] == 1, "no other user's processes"
    daemon.call("kill_tree", name="chat-1", grace_s=0)
    host.run("rm", "/var/log/chat-1.log")
    seen = look(host, daemon, read, write, cache_dir=cache, read_paths=["/srv/mine"], write_paths=["/srv/out"])
    assert seen["read"] == ["/etc/passwd", "/srv/mine/f"]
    assert seen["write"] == ["/run/swapd/w/chat-1", cache, "/tmp", "/dev/shm", "/srv/out"]


def test_a_workers_directory_is_its_users_and_a_gate_may_pass(host, daemon):
    daemon.spawn("llm-1", confinement={"user": "llm", "group": ""})
    assert host.run("stat", "-c", "%a %U:%G", "/run/swapd/w/llm-1").strip() == "710 llm:swapd-workers"


def test_limits_are_set_and_changed_where_the_host_has_them(host, daemon):
    """Where a controller is missing, systemd takes the value and cannot enforce it: that is said."""
    daemon.spawn(confinement={"memory_max_bytes": 1 << 30, "cpu_weight": 20})
    assert host.show("swapd-chat-1.service", "MemoryMax") == str(1 << 30)
    assert host.show("swapd-chat-1.service", "CPUWeight") == "20"
    assert host.show("swapd-chat-1.service", "IOWeight") == "20"
    daemon.call("set_limits", name="chat-1", cpu_weight=100)
    assert host.show("swapd-chat-1.service", "CPUWeight") == "100"
    assert host.show("swapd-chat-1.service", "IOWeight") == "100"
    assert host.show("swapd-chat-1.service", "MemoryMax") == str(1 << 30)
    there = host.path("/sys/fs/cgroup/cgroup.controllers").read_text().split()
    assert daemon.missing == [name for name in ("cpu", "memory") if name not in there]


def test_a_drop_in_of_the_operators_counts_for_every_worker(host, daemon):
    host.run(
        "sh",
        "-c",
        "mkdir -p /etc/systemd/system/swapd-.service.d; printf '[Service]\\nNice=7\\n'"
        " > /etc/systemd/system/swapd-.service.d/local.conf; systemctl daemon-reload",
    )
    daemon.spawn(code="import os; print(os.nice(0))")
    assert daemon.call("wait", name="chat-1")["exit_code"] == 0
    assert log_of(host) == "7\n"
    host.run("sh", "-c", "rm /etc/systemd/system/swapd-.service.d/local.conf; systemctl daemon-reload")
