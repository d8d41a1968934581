"""Each thing that may be wrong is found, told with its cause, and answered with a command that can be typed."""

from dataclasses import replace

import pytest
from support.control_values import GIB, NOW, device, service, status, swap_record, worker

from swapd.core.diagnosis import Disk, Facts, Host, Severity, diagnose, is_wrong

HOST = Host(systemd=True, unit="swapd.service", unit_state="active", open_files=100, max_files=1048576)
WELL = Facts(at=NOW, status=status(), workers=[worker()], devices=[device()], host=HOST)


def ask(facts):
    return [(f.severity.value, f.what, f.try_next) for f in diagnose(facts)]


def daemon(services=(), **changes):
    found = status(*services)
    return {**found, "daemon": {**found["daemon"], **changes}}


def away(*services, **changes):
    """Nobody answers; told by the journal and the workers."""
    services = services or (service(health="Serving"),)
    told = daemon(services, pid=None, running=False, stopped=False, version=None, **changes)
    return replace(WELL, status=told, unreachable="nobody listens on /run/swapd/control.sock")


def of(**changes):
    return replace(WELL, status=status(service(**changes)))


def problem(code, message="it did not work"):
    return {"code": code, "message": message, "details": {}}


def looping(code):
    return {**problem("CRASH_LOOP", "failed 9 times"), "details": {"failures": 9, "last": problem(code)}}


def failed(**changes):
    error = {**problem("PROBE_FAILED", "probe 1 answered 500"), "step": "verify", "log_tail": []}
    return swap_record(phase="Failed", error=error, **changes)


def running(started_at):
    step = {"name": "load", "status": "running", "started_at": started_at, "ms": None, "detail": None}
    return swap_record(phase="Progressing", steps=[step])


def on_host(**changes):
    return replace(WELL, host=replace(HOST, **changes))


CASES = {
    "gone": (
        away(),
        "problem",
        "swapd is not running: crashed workers are not started again",
        "systemctl start swapd.service",
    ),
    "gone, serving": (away(), "problem", "Its workers go on serving chat.", "systemctl start swapd.service"),
    "gone, no systemd": (
        replace(away(), host=Host()),
        *("problem", "swapd is not running", "swapd --config /etc/swapd/swapd.toml"),
    ),
    "stopped": (
        replace(WELL, status=daemon(running=True, stopped=True), unreachable="no answer in 5 s"),
        *("problem", "swapd (pid 4711) is stopped by a signal", "kill -CONT 4711"),
    ),
    "hangs": (
        replace(WELL, status=daemon(running=True, stopped=False), unreachable="no answer in 5 s"),
        *("problem", "swapd (pid 4711) does not answer: no answer in 5 s.", "systemctl restart swapd.service"),
    ),
    "would not start": (
        away(config_problems=["/etc/swapd/swapd.toml: services.chat.soak: 60 has no unit"]),
        *(
            "problem",
            "would not start: /etc/swapd/swapd.toml: services.chat.soak",
            "swapd --check-config /etc/swapd/swapd.toml",
        ),
    ),
    "started again and again": (
        replace(away(), host=replace(HOST, unit_restarts=17)),
        *("note", "has started swapd.service again 17 times", "journalctl -u swapd.service -n 100"),
    ),
    "stopping": (
        replace(WELL, status=daemon(stopping=True)),
        *("warning", "swapd is stopping", "systemctl restart swapd.service"),
    ),
    "journal": (
        replace(
            on_host(disks=(Disk("/var/lib/swapd", GIB, GIB),)),
            status=daemon(journal="The journal cannot be used: full."),
        ),
        *("problem", "What serves goes on; no swap is begun.", "df -h /var/lib/swapd; ls -l /var/lib/swapd"),
    ),
    "configuration": (
        replace(WELL, status=daemon(config_problems=["x: y: z", "more"])),
        *(
            "warning",
            "would refuse the configuration: x: y: z (2 mistakes in all).",
            "swapd --check-config /etc/swapd/swapd.toml",
        ),
    ),
    "no systemd": (replace(WELL, host=Host()), "note", "There is no systemd here", "see docs/operations.md"),
    "unavailable": (
        replace(
            of(health="Unavailable", problem=problem("LOAD_FAILED"), rollback="none", failures=4),
            logs={"chat": ("chat-7", ["KeyError"])},
        ),
        *(
            "problem",
            "chat is Unavailable: it did not work. (LOAD_FAILED) It has failed 4 times",
            "swapd-cli logs chat-7 -n 200",
        ),
    ),
    "a way back": (
        of(health="Unavailable", problem=problem("WORKER_EXITED"), rollback="cold"),
        *("problem", "chat is Unavailable", "swapd-cli logs chat -n 200; or go back: swapd-cli rollback chat"),
    ),
    "paused": (
        of(health="Degraded", problem=problem("SERVICE_PAUSED"), rollback="none"),
        *("problem", "(SERVICE_PAUSED)", "swapd-cli logs chat -n 200; once the cause is gone: swapd-cli resume chat"),
    ),
    "no memory, a stranger": (
        of(health="Unavailable", problem=problem("VRAM_INSUFFICIENT")),
        *("problem", "(VRAM_INSUFFICIENT)", "ps -fp 99 (not swapd's, and holds memory); then swapd-cli devices"),
    ),
    "no memory, all ours": (
        replace(of(health="Unavailable", problem=problem("OUT_OF_MEMORY")), devices=[device(foreign=[])]),
        *("problem", "(OUT_OF_MEMORY)", "swapd-cli devices; then swapd-cli plan chat --to MODEL"),
    ),
    "no memory, again and again": (
        of(health="Degraded", failures=9, problem=looping("VRAM_INSUFFICIENT")),
        *(
            "problem",
            "failed 9 times. (CRASH_LOOP)",
            "ps -fp 99 (not swapd's, and holds memory); then swapd-cli devices",
        ),
    ),
    "again and again": (
        of(health="Degraded", failures=9, problem=looping("WORKER_EXITED"), rollback="none"),
        *("problem", "failed 9 times. (CRASH_LOOP)", "swapd-cli logs chat -n 200"),
    ),
    "down, nobody to start it": (
        away(service(health="Down", problem=problem("WORKER_EXITED"))),
        *("problem", "chat is Down: it did not work. (WORKER_EXITED)", "systemctl start swapd.service"),
    ),
    "a worker hangs too": (
        away(service(health="Unknown", problem=problem("TIMEOUT", "chat-3 does not answer"))),
        *("problem", "chat is Unknown: chat-3 does not answer.", "swapd-cli --offline logs chat -n 200"),
    ),
    "serves, and has a problem": (
        of(problem=problem("WORKER_EXITED")),
        *("warning", "chat: it did not work.", "swapd-cli logs chat -n 200"),
    ),
    "waits in a swap": (
        replace(of(health="Degraded", holding=True), swaps={"chat": running(NOW - 5)}),
        *("note", "chat is in the middle of swap 42", "swapd-cli wait chat"),
    ),
    "left behind": (
        away(service(health="Serving", note="swap 42 was left Progressing")),
        *("warning", "chat: swap 42 was left Progressing.", "systemctl start swapd.service"),
    ),
    "last swap": (
        replace(WELL, swaps={"chat": failed()}),
        *("warning", "(42, to b) failed in verify: probe 1 answered 500. (PROBE_FAILED)", "swapd-cli show 42"),
    ),
    "last swap, gone": (
        replace(away(), swaps={"chat": failed()}),
        "warning",
        "failed in verify",
        "swapd-cli --offline show 42",
    ),
    "slow step": (
        replace(WELL, swaps={"chat": running(NOW - 1200)}),
        *("warning", "Step load of swap 42 has been running for 20 min.", "swapd-cli cancel chat"),
    ),
    "drift": (
        of(model="b", drift="config a, running b (#42, ana)"),
        *("note", "config a, running b (#42, ana). A restart keeps what runs.", 'write model = "b" in [services.chat]'),
    ),
    "worker": (
        replace(away(), workers=[worker(state="no answer")]),
        *("warning", "chat-3 (pid 4712): no answer.", "swapd-cli --offline logs chat-3 -n 200"),
    ),
    "old worker": (
        replace(WELL, workers=[worker(version="0.0.9")]),
        *("note", "chat-3 runs swapd 0.0.9, the daemon 0.1.0.", "swapd-cli restart chat"),
    ),
    "driver hangs": (
        replace(WELL, devices=None, devices_problem="swapd took the request and did not answer in 5 s"),
        *("problem", "Device memory could not be read", "nvidia-smi; dmesg -T | grep -i -e nvrm -e xid"),
    ),
    "device in trouble": (
        replace(WELL, devices=[device(state="xid", trouble="Xid 48, a double-bit memory error")]),
        *("warning", "gpu0 is xid: Xid 48, a double-bit memory error.", "nvidia-smi -q; dmesg"),
    ),
    "device unknown": (
        replace(WELL, devices=[device(free_bytes=None, detail="the driver does not answer")]),
        *("problem", "gpu0 is not known, so nothing is placed there: the driver does not answer.", "nvidia-smi"),
    ),
    "device full": (
        replace(WELL, devices=[device(free_bytes=GIB // 4)]),
        *("warning", "gpu0 has 256 MiB free, less than its headroom of 512 MiB.", "swapd-cli devices"),
    ),
    "files used up": (
        on_host(open_files=900, max_files=1024),
        *("problem", "swapd has 900 of at most 1024 files open.", "systemctl edit swapd.service: LimitNOFILE=1048576"),
    ),
    "few files": (
        replace(on_host(max_files=1024), host=Host(max_files=1024)),
        *("warning", "swapd may open 1024 files only", "ulimit -n 1048576"),
    ),
    "little disk": (
        on_host(disks=(Disk("/var/lib/swapd", 100 << 20, GIB),)),
        *("warning", "/var/lib/swapd has 100 MiB of disk left.", "du -xh /var/lib/swapd | sort -h | tail"),
    ),
    "no disk": (on_host(disks=(Disk("/var", 0, GIB),)), "problem", "/var has 0 B of disk left.", "du -xh /var"),
    "disk read-only": (
        on_host(disks=(Disk("/var", GIB, GIB, read_only=True),)),
        *("problem", "/var takes no writes (read-only)", "mount -o remount,rw"),
    ),
    "clock": (on_host(clock_synchronized=False), "note", "The clock is not synchronized", "timedatectl"),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_found_with_its_cause_and_the_next_command(name):
    facts, severity, what, command = CASES[name]
    found = ask(facts)
    assert [f for f in found if f[0] == severity and what in f[1] and command in f[2]], found
    assert is_wrong(diagnose(facts)) == any(f[0] != "note" for f in found)


def test_where_all_is_well_nothing_is_found():
    assert ask(WELL) == []
    assert not is_wrong([])


def test_what_is_not_known_is_no_finding():
    unknown = Facts(at=NOW, status=status(), devices=None, host=Host(systemd=True))
    assert ask(unknown) == []


def test_the_worst_comes_first():
    facts = replace(on_host(clock_synchronized=False, max_files=1024), status=status(service(health="Unavailable")))
    severities = [f.severity for f in diagnose(facts)]
    assert severities == [Severity.PROBLEM, Severity.WARNING, Severity.NOTE]
