"""swapd-cli against a scripted daemon: what it prints, and how it exits."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.control_daemon import DEADLINE_S, FakeDaemon, wait_until
from support.control_values import GIB, device, plan, service, status, swap_record, worker

from swapd.cli import main as main_module
from swapd.cli.main import main
from swapd.cli.plan_page import plan_lines
from swapd.cli.render import HISTORY_HEADER, headline, history_rows
from swapd.core import errors
from swapd.core.errors import SwapdError
from swapd.core.sizes import human_seconds

COMMAND = [sys.executable, "-m", "swapd.cli.main"]


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    answers = {"status": status(), "devices": [device()], "workers": [worker()], "plan": plan(), "show": swap_record()}
    with FakeDaemon(tmp_path, answers) as made:
        monkeypatch.setenv("SWAPD_CONTROL", made.endpoint)
        yield made


def refuse(code: str, message: str = "no", **details: Any) -> Callable[..., Any]:
    def answer(params: Any, peer: Any) -> Any:
        raise SwapdError(code, message, details)

    return answer


def play(daemon: FakeDaemon, *records: dict[str, Any], method: str = "swap") -> None:
    """The method answers with the first record; the following come once the command waits."""
    current = [records[0]]
    daemon.answers[method] = lambda params, peer: records[0]

    def show(params: Any, peer: Any) -> Any:
        answer = current[0]
        if current[0] is records[0]:
            for record in records[1:]:
                current[0] = record
                for step in record["steps"]:
                    body = {**step, "step": step["name"], "swap_id": record["id"]}
                    body.pop("name")
                    daemon.socket.publish("swap.step", body)
                daemon.socket.publish("swap.phase", {"swap_id": record["id"], "phase": record["phase"]})
        return answer

    daemon.answers["show"] = show


# --- swaps ---------------------------------------------------------------------------------------------------


def test_a_swap_shows_its_steps_and_who_serves(daemon, capsys):
    until = time.time() + 600
    play(
        daemon,
        swap_record(phase="Preparing", steps=[]),
        swap_record(phase="Soaking", kept="resident", soak_until=until),
    )
    assert main(["swap", "chat", "--to", "b", "--reason", "new weights", "--actor", "bot"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("swap 42  chat: a #41 to b #42, dual: b needs 6.0 GiB")
    assert lines[1:3] == ["start           ok          120 ms", "load            ok           1.2 s"]
    kept = time.strftime("%H:%M", time.localtime(until))
    assert lines[-1] == f"b serves; a kept until {kept} (cutover 840 us)"
    assert ("swap", {"service": "chat", "to": "b", "reason": "new weights", "actor": "bot"}) in [
        call[:2] for call in daemon.calls
    ]


def test_a_model_that_was_not_kept_is_not_said_to_be(daemon, capsys):
    ended = {"strategy": "in-place", "outage_ms": 70.0, "kept": "stopped", "soak_until": time.time()}
    soaking = swap_record(phase="Soaking", **ended)
    play(daemon, swap_record(phase="Preparing", steps=[]), soaking)
    assert main(["swap", "chat", "--to", "b"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "b serves (outage 70.0 ms)"


def test_an_in_place_swap_tells_its_outage_and_what_was_cut(daemon, capsys):
    done = swap_record(strategy="in-place", outage_ms=12345.0, cut_requests=3)
    play(daemon, swap_record(phase="Preparing", steps=[]), done)
    assert main(["swap", "chat", "--to", "b"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "b serves (outage 12.3 s, 3 requests cut)"


def test_a_failed_swap_tells_the_step_the_reason_and_the_last_log_lines(daemon, capsys):
    error = {
        "code": errors.PROBE_FAILED,
        "message": "probe 1 answered 500, expected 200",
        "details": {},
        "step": "verify",
        "log_tail": ["Traceback", "\x1b[31mKeyError: 'x'"],
    }
    play(daemon, swap_record(phase="Preparing", steps=[]), swap_record(phase="Failed", error=error))
    assert main(["swap", "chat", "--to", "b"]) == 1
    out = capsys.readouterr().out
    assert "swap 42 failed in verify: probe 1 answered 500, expected 200 (PROBE_FAILED)" in out
    assert "  | Traceback\n  | ?[31mKeyError: 'x'" in out
    assert out.splitlines()[-1] == "a serves"


def test_a_failure_that_leaves_nobody_serving_says_so(daemon, capsys):
    daemon.answers["status"] = status(service(front="gate", holding=True, health="Unavailable"))
    play(daemon, swap_record(phase="Preparing", steps=[]), swap_record(phase="Failed", reason="the old one died too"))
    assert main(["swap", "chat", "--to", "b"]) == 1
    out = capsys.readouterr().out
    assert "swap 42 failed: the old one died too" in out
    assert out.splitlines()[-1] == "chat: its clients wait (Unavailable); swapd-cli status chat"


@pytest.mark.parametrize("argv", [["rollback", "chat"], ["cancel", "42"], ["cancel", "chat"]])
def test_a_return_is_done_when_the_old_one_serves_again(daemon, capsys, argv):
    returning = swap_record(phase="RollingBack")
    back = {"name": "restore: switch", "status": "done", "started_at": 0.0, "ms": 3.1, "detail": ""}
    canceled = swap_record(phase="Canceled", reason="canceled by ana", steps=[*returning["steps"], back])
    play(daemon, returning, canceled, method=argv[0])
    assert main(argv) == 0
    assert capsys.readouterr().out.splitlines() == [
        "swap 42  chat: b #42 back to a #41",
        "restore: switch ok          3.1 ms",
        "a serves",
    ]


@pytest.mark.parametrize(
    ("source", "code", "expected"),
    [
        ({"revision": 41, "model": "a"}, errors.CANCELED, "canceled; a #41 goes on serving"),
        ({"revision": 41, "model": "a"}, errors.PROBE_FAILED, "failed; a #41 goes on serving"),
        (None, errors.CANCELED, "canceled; no model served before"),
    ],
)
def test_what_never_stopped_to_serve_is_not_said_to_come_back(source, code, expected):
    error = {"code": code, "message": "-", "details": {}, "step": "load", "log_tail": []}
    record = swap_record(phase="RollingBack", cutover_ms=None, error=error, **{"from": source})
    assert headline(record) == f"swap 42  chat: {expected}"
    held = {**record, "steps": [*record["steps"], {"name": "hold", "status": "running", "started_at": 0.0}]}
    assert "b #42 back to" in headline(held)


def test_a_rollback_names_a_revision_by_its_number(daemon):
    play(daemon, swap_record(), method="rollback")
    assert main(["rollback", "chat", "--to", "41", "--detach"]) == 0
    assert daemon.calls[-1][1] == {"service": "chat", "to": 41}


def test_a_detached_swap_says_how_to_watch_it(daemon, capsys):
    play(daemon, swap_record(phase="Preparing"))
    assert main(["swap", "chat", "--to", "b", "--detach"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "goes on; to watch it: swapd-cli wait chat; to end it: swapd-cli cancel chat"
    )


def test_a_swap_past_the_deadline_goes_on_and_exits_5(daemon, capsys):
    play(daemon, swap_record(phase="Preparing", steps=[]))
    assert main(["swap", "chat", "--to", "b", "--deadline", "300ms"]) == 5
    assert "it goes on; to watch it: swapd-cli wait chat" in capsys.readouterr().out


def test_ctrl_c_detaches_and_says_how_to_watch(daemon):
    play(daemon, swap_record(phase="Preparing", steps=[]))
    command = [*COMMAND, "swap", "chat", "--to", "b"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: daemon.count("show") > 0)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=DEADLINE_S)
        finally:
            process.kill()
    assert process.returncode == 5
    assert "detached; swap 42 goes on; to watch it: swapd-cli wait chat; to end it: swapd-cli cancel chat" in out
    assert err == ""


def test_json_is_the_daemons_record_untouched(daemon, capsys):
    done = swap_record(phase="Succeeded", future_field={"x": [1]})
    play(daemon, swap_record(phase="Preparing", steps=[]), done)
    assert main(["--json", "swap", "chat", "--to", "b"]) == 0
    assert json.loads(capsys.readouterr().out) == done


def test_a_lost_name_is_allowed_by_a_flag(daemon):
    assert main(["plan", "chat", "--to", "b", "--allow-name-mismatch"]) == 0
    assert daemon.calls[-1][:2] == ("plan", {"service": "chat", "to": "b", "allow_name_mismatch": True})


def test_what_breaks_clients_is_allowed_by_a_flag_and_shown(daemon, capsys):
    assert main(["plan", "chat", "--to", "b", "--allow-breaking"]) == 0
    assert daemon.calls[-1][:2] == ("plan", {"service": "chat", "to": "b", "allow_breaking": True})
    capsys.readouterr()
    gone = ["input 'x' is gone", "input 'y' is gone"]
    daemon.answers["show"] = swap_record(allow_breaking=True, differences=gone)
    assert main(["show", "42"]) == 0
    shown = capsys.readouterr().out
    assert "contract  allowed: input 'x' is gone\n          allowed: input 'y' is gone\n" in shown


def test_how_the_golden_requests_went_is_shown(daemon, capsys):
    counts = {"requests": 40, "right": 30, "wrong": 1, "p50_ms": 12.0, "p95_ms": 20.0, "slowest_ms": 31.0}
    daemon.answers["show"] = swap_record(golden={**counts, "differences": ["golden 3: no"]})
    assert main(["show", "42"]) == 0
    words = "30 answered rightly, 1 wrongly, 9 not asked, p50 12.0 ms, p95 20.0 ms, slowest 31.0 ms"
    assert f"golden    40 requests: {words}\n          golden 3: no\n" in capsys.readouterr().out


def test_a_dry_run_is_a_plan(daemon, capsys):
    assert main(["swap", "chat", "--to", "b", "--dry-run", "--max-outage", "2m"]) == 0
    assert daemon.calls[-1][:2] == ("plan", {"service": "chat", "to": "b", "max_outage": 120.0})
    assert capsys.readouterr().out == (
        "chat: a #41 to b #42\n"
        "strategy  in-place: dual impossible: a holds 20.0 of 24.0 GiB; b needs 6.0 GiB\n"
        "device    gpu0: 24.0 GiB, 4.0 GiB free, headroom 512 MiB\n"
        "          a (chat-3): 20.0 GiB promised, 19.0 GiB held\n"
        "          python3 (pid 99): 1.0 GiB held, not swapd's\n"
        "          3.5 GiB available now, 22.5 GiB at the load, 16.5 GiB after it\n"
        "          gpu1: 24.0 GiB, 5.0 GiB free, headroom 512 MiB, 4.5 GiB available\n"
        "needs     6.0 GiB on gpu0, declared: device_memory = 6.0 GiB\n"
        "          last time 6.0 GiB was planned (declared) and 5.0 GiB taken: 20% too much\n"
        "outage    13 s\n"
        "          drain 2 s at most, release 1 s, load 9.2 s, warm-up and probes 300 ms\n"
        "streams   3 open, which may go on for 40.0 s\n"
        "rollback  cold, 11 s\n"
        "or        impossible: dual: 2.5 GiB short on gpu0\n"
        "change    2.5 GiB more free on gpu0 makes it dual\n"
    )


def test_a_plan_tells_what_was_passed_over_once():
    told = "dual impossible on gpu0: a holds 20.0 of 24.0 GiB; b needs 6.0 GiB, 3.5 GiB available"
    other = {"strategy": "dual", "possible": False, "why": told}
    page = "\n".join(plan_lines(plan(why=f"{told}; in-place on gpu0: b needs 6.0 GiB", alternatives=[other])))
    assert page.count(told) == 1
    assert f"or        {told}" in plan_lines(plan(why="in-place on gpu0: b needs 6.0 GiB", alternatives=[other]))
    could = {"strategy": "dual", "possible": True, "why": "dual on gpu1: b needs 6.0 GiB"}
    assert "or        possible: dual on gpu1: b needs 6.0 GiB" in plan_lines(plan(alternatives=[could]))


def test_what_is_kept_for_a_return_is_no_worker_whose_use_is_unknown(daemon, capsys):
    kept = {"id": "return of chat", "model": None, "reserved_bytes": 320 << 20, "used_bytes": None}
    words = "320 MiB kept for the return of chat, until its swap or soak ends"
    assert f"          {words}" in plan_lines(plan(memory=[device(workers=[kept])]))
    daemon.answers["devices"] = [device(workers=[kept])]
    assert main(["devices"]) == 0
    assert f"gpu0: {words}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("outage_s", "words"),
    [
        (0.0, "none expected"),
        (12.5, "13 s"),
        (180.0, "3 min, longer than hold_timeout (2 min): clients get 503 from then on"),
        (None, "unknown; clients who wait longer than 2 min (hold_timeout) get 503"),
    ],
)
def test_a_plan_says_what_clients_will_notice(outage_s, words):
    lines = plan_lines({**plan(), "expected_outage_s": outage_s})
    assert f"outage    {words}" in lines


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ({}, "cold, 11 s"),
        ({"rollback": "instant", "rollback_s": 0.0}, "instant, until the soak ends (10 min), then cold, 11 s"),
        ({"rollback": "parked", "rollback_s": 0.8}, "parked, 800 ms, until the soak ends (10 min), then cold, 11 s"),
        (
            {"rollback": "parked", "rollback_s": None, "rollback_later": "none", "rollback_later_s": None},
            "parked, until the soak ends (10 min), then none",
        ),
        ({"rollback": "instant", "rollback_s": 0.0, "soak_s": 0.0}, "instant"),
        ({"rollback": "none", "rollback_s": None, "rollback_later": "none", "rollback_later_s": None}, "none"),
    ],
)
def test_a_plan_says_how_one_would_get_back(way, words):
    assert f"rollback  {words}" in plan_lines(plan(**way))


def test_a_plan_says_what_is_not_known_and_leaves_out_what_does_not_apply():
    terms = {"drain_s": 0.0, "release_s": None, "load_s": None, "warm_s": 0.0}
    lines = plan_lines(plan(outage_terms=terms, available_then_bytes=None, available_after_bytes=None))
    assert "          drain 0 ms, release not known, load not known, warm-up and probes 0 ms" in lines
    assert "          3.5 GiB available now" in lines
    dual = "\n".join(plan_lines(plan(outage_terms=None, last_forecast=None, memory=[])))
    assert "release" not in dual
    assert "last time" not in dual
    assert "device " not in dual


def test_an_outage_that_does_not_count_the_release_says_so():
    terms = {"drain_s": 0.0, "release_s": None, "load_s": 7.8, "warm_s": 0.1}
    lines = plan_lines(plan(outage_terms=terms, expected_outage_s=7.9))
    assert "outage    7.9 s, not counting the release (not known yet)" in lines


def test_a_plan_for_several_devices_tells_each_of_them():
    lines = plan_lines(plan(devices=["gpu0", "gpu1"]))
    assert "needs     6.0 GiB on each of gpu0, gpu1, declared: device_memory = 6.0 GiB" in lines
    assert "          gpu1: 24.0 GiB, 5.0 GiB free, headroom 512 MiB" in lines


def test_a_plan_tells_one_outage_and_not_two(daemon, capsys):
    expected = 6.23
    daemon.answers["plan"] = plan(why=f"expected outage {human_seconds(expected)}", expected_outage_s=expected)
    assert main(["plan", "chat", "--to", "b"]) == 0
    out = capsys.readouterr().out
    assert "expected outage 6.3 s\n" in out
    assert "outage    6.3 s\n" in out


def test_a_plan_for_a_model_without_probes_says_that_nothing_proves_it(daemon, capsys):
    daemon.answers["plan"] = plan(probes=0)
    assert main(["plan", "chat", "--to", "b"]) == 0
    assert "proof     none: model b has no probes, see [[models.b.probes]]\n" in capsys.readouterr().out


# --- exit statuses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "exit_status"),
    [
        (errors.SWAP_IN_PROGRESS, 4),
        (errors.VRAM_INSUFFICIENT, 4),
        (errors.UNKNOWN_SERVICE, 4),
        (errors.TIMEOUT, 5),
        (errors.INTERNAL, 1),
    ],
)
def test_a_refusal_is_printed_with_its_code(daemon, capsys, code, exit_status):
    daemon.answers["swap"] = refuse(code, "chat is being swapped to c by #41")
    assert main(["swap", "chat", "--to", "b"]) == exit_status
    captured = capsys.readouterr()
    assert captured.err == f"swapd-cli: chat is being swapped to c by #41 ({code})\n"
    assert captured.out == ""


def test_a_refusal_as_json_has_its_details(daemon, capsys):
    daemon.answers["plan"] = refuse(errors.VRAM_INSUFFICIENT, "2.5 GiB short", short_bytes=5)
    assert main(["--json", "plan", "chat", "--to", "b"]) == 4
    found = json.loads(capsys.readouterr().out)
    assert found == {"error": {"code": "VRAM_INSUFFICIENT", "message": "2.5 GiB short", "details": {"short_bytes": 5}}}


def test_no_daemon_exits_3(tmp_path, capsys):
    assert main(["--connect", f"ipc://{tmp_path}/none.sock", "status"]) == 3
    assert "swapd is not running" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["swap", "chat"],
        ["swap", "chat", "--to", "b", "--max-outage", "2"],
        ["swap", "chat", "--to", "b", "--deadline", "soon"],
        ["show", "latest"],
        ["promotion", "chat"],
        ["history", "-n", "-1"],
    ],
)
def test_a_wrong_command_line_exits_2(argv, capsys):
    with pytest.raises(SystemExit) as left:
        main(argv)
    assert left.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_error(daemon):
    daemon.answers["history"] = [swap_record(number) for number in range(2000)]
    with subprocess.Popen([*COMMAND, "history"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(DEADLINE_S) == main_module.BROKEN_PIPE


def test_a_closed_stdout_is_no_error(daemon):
    done = subprocess.run(
        f"{shlex.join([*COMMAND, 'status'])} >&-", shell=True, capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_verb_explains_itself_with_an_example(capsys):
    for verb in main_module.EXAMPLES:
        with pytest.raises(SystemExit) as left:
            main([verb, "--help"])
        assert left.value.code == 0
        assert f"swapd-cli {verb}" in capsys.readouterr().out.partition("examples:")[2].replace("--json ", "")


def test_options_may_come_before_or_after_the_verb(daemon, capsys):
    assert main(["status", "--json", "--connect", daemon.endpoint]) == 0
    after = capsys.readouterr().out
    assert main(["--json", "--connect", daemon.endpoint, "status"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(after) == status()


# --- tables --------------------------------------------------------------------------------------------------


def test_status_shows_services_drift_and_problems(daemon, capsys):
    soaking = service(
        model="b",
        revision=42,
        drift="config a, running b (#42, ana)",
        soak={"until": time.time() + 600, "previous": {"revision": 41, "model": "a"}},
        rollback="instant",
        problem={"code": "NOT_READY", "message": "ready path answers 503", "details": {}},
        retry_at=time.time() + 30,
    )
    swapping = service(name="embed", swap=swap_record(phase="Preparing", steps=[{"name": "load", "status": "running"}]))
    daemon.answers["status"] = status(soaking, swapping)
    assert main(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "swapd 0.1.0, pid 4711, up 1 h, /etc/swapd/swapd.toml"
    assert lines[1].split("  ")[0] == "SERVICE"
    assert "b #42" in lines[2]
    assert "Soaking until" in lines[2]
    assert "a #41 kept" in lines[2]
    assert "Preparing to b #42: load" in lines[3]
    assert lines[4] == "chat: config a, running b (#42, ana)"
    assert lines[5].startswith("chat: ready path answers 503 (NOT_READY); next attempt at ")


def test_unknown_memory_is_not_zero(daemon, capsys):
    daemon.answers["devices"] = [device(total_bytes=None, free_bytes=None, available_bytes=None, detail="NVML: lost")]
    assert main(["devices"]) == 0
    row = capsys.readouterr().out.splitlines()[1].split()
    assert row[:4] == ["gpu0", "nvml", "?", "?"]


def test_devices_name_who_holds_memory(daemon, capsys):
    assert main(["devices"]) == 0
    out = capsys.readouterr().out
    assert "gpu0: chat-3 19.0 GiB of 20.0 GiB reserved" in out
    assert "gpu0: pid 99 python3 1.0 GiB, not swapd's" in out


def test_workers_that_span_several_devices_are_told_with_what_they_have_on_each(daemon, capsys):
    older = worker(id="chat-2")
    del older["devices"]
    daemon.answers["workers"] = [worker(devices=["gpu0", "gpu1"]), older]
    assert main(["workers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "gpu0, gpu1  20.0 GiB each  19.0 GiB each" in lines[1]
    assert " gpu0  " in lines[2], "a daemon of before knows one"


def test_status_names_the_trouble_of_a_device_that_a_service_stands_on(daemon, capsys):
    trouble = {"device": "gpu0", "state": "lost", "trouble": "the GPU is lost: reset it or reboot"}
    daemon.answers["status"] = status(service(device_troubles=[trouble]))
    assert main(["status"]) == 0
    assert "chat: gpu0 is lost: the GPU is lost: reset it or reboot" in capsys.readouterr().out


def test_workers_of_a_gate_have_no_model(daemon, capsys):
    gate = worker(
        id="chat-gate-4", model=None, revision=None, role="gate", device=None, devices=[], reserved_bytes=None
    )
    daemon.answers["workers"] = [worker(), gate]
    assert main(["workers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:4] == ["chat-3", "a", "#41", "stable"]
    assert lines[2].split()[:3] == ["chat-gate-4", "-", "gate"]


def test_history_and_show(daemon, capsys):
    failed = swap_record(7, "Failed", error={"code": "X", "message": "no", "details": {}, "log_tail": []})
    first = swap_record(1, **{"from": None})
    daemon.answers["history"] = [failed, first]
    assert main(["history", "chat", "-n", "5"]) == 0
    assert daemon.calls[-1][1] == {"service": "chat", "limit": 5}
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["ID", "7", "1"]
    assert main(["show", "42"]) == 0
    out = capsys.readouterr().out
    assert "swap 42  chat: a #41 to b #42" in out
    assert "clients   cutover 840 us, no requests cut" in out
    assert "peak      6.0 GiB in use on gpu0, by everything there" in out
    assert "load            ok           1.2 s" in out


def waits(**figures):
    """What `history` shows of clients' waiting: (CLIENTS WAITED, CUTOVER)."""
    row = history_rows([swap_record(**figures)], time.time())[0]
    return row[HISTORY_HEADER.index("CLIENTS WAITED")], row[HISTORY_HEADER.index("CUTOVER")]


def test_nobody_is_said_to_have_waited_where_nobody_was_held():
    assert waits(outage_ms=0.84, cutover_ms=0.84) == ("-", "840 us")
    assert waits(strategy="in-place", outage_ms=357.0, cutover_ms=0.6) == ("357 ms", "600 us")
    assert waits(outage_ms=None, cutover_ms=None) == ("-", "-")


def test_what_clients_waited_for_a_way_back_is_told():
    failed = {"strategy": "in-place", "outage_ms": None, "cutover_ms": None}
    assert waits(**failed, return_outage_ms=812.0, return_cutover_ms=0.7) == ("812 ms", "700 us")
    died = {"outage_ms": 0.84, "cutover_ms": 0.84, "return_outage_ms": 95.0, "return_cutover_ms": None}
    assert waits(**died) == ("95.0 ms", "840 us")


def test_reload_names_what_it_cannot_apply(daemon, capsys):
    change = {"key": "services.chat.listen", "effect": "restart", "text": "services.chat.listen: needs a restart"}
    daemon.answers["reload"] = {"changes": [change], "applied": False, "refused": ["services.chat.listen"]}
    assert main(["reload", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "services.chat.listen: needs a restart  (when swapd starts again)\n" in shown
    assert "not possible while swapd runs as it does: services.chat.listen" in shown


def test_stopping_the_workers_wants_a_yes(daemon, capsys, monkeypatch):
    daemon.answers["stop_workers"] = {"stopping": True, "workers": ["chat-3"]}
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115
    assert main(["stop-workers"]) == 2
    assert daemon.count("stop_workers") == 0
    assert main(["stop-workers", "--yes"]) == 0
    assert capsys.readouterr().out == "stopping: chat-3\n"
    sys.stdin.close()


# --- waiting, events, logs -----------------------------------------------------------------------------------


def test_wait_follows_the_swap_in_progress(daemon, capsys):
    play(daemon, swap_record(phase="Preparing", steps=[]), swap_record())
    daemon.answers["status"] = status(service(swap=swap_record(phase="Preparing", steps=[])))
    assert main(["wait", "chat"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "b serves (cutover 840 us)"


def test_wait_healthy_waits_for_the_service(daemon, capsys):
    answers = iter([status(service(health="Unavailable")), status(service(health="Degraded"))])
    daemon.answers["status"] = lambda params, peer: next(answers, status())
    assert main(["wait", "chat", "--healthy"]) == 0
    assert capsys.readouterr().out == "chat: Healthy, a serves\n"


BROKEN = {
    **{"health": "Unavailable", "front": "gate", "holding": True, "revision": None},
    "problem": {"code": "PROBE_FAILED", "message": "probe 1 answered 500", "details": {}},
}


def test_wait_healthy_ends_at_its_deadline_and_says_what_is_wrong(daemon, capsys):
    daemon.answers["status"] = status(service(**BROKEN))
    argv = ["wait", "chat", "--healthy", "--deadline", "10ms"]
    expected = "not Healthy after 10.0 ms; chat: Unavailable, its clients wait: probe 1 answered 500 (PROBE_FAILED)\n"
    assert main(argv) == 5
    assert capsys.readouterr().out == expected
    assert main(["--json", *argv]) == 5
    assert capsys.readouterr() == ("", expected)


def test_wait_does_not_say_that_a_model_serves_which_does_not(daemon, capsys):
    daemon.answers["status"] = status(service(**BROKEN))
    assert main(["wait", "chat"]) == 0
    assert capsys.readouterr().out == "chat: Unavailable, its clients wait: probe 1 answered 500 (PROBE_FAILED)\n"


def test_in_a_crash_loop_nobody_is_said_to_wait(daemon, capsys):
    problem = {"code": "CRASH_LOOP", "message": "it fails", "details": {}}
    daemon.answers["status"] = status(service(**{**BROKEN, "health": "Degraded", "problem": problem}))
    assert main(["wait", "chat"]) == 0
    assert capsys.readouterr().out == "chat: Degraded, its clients get 503: it fails (CRASH_LOOP)\n"


def test_an_attempt_whose_time_has_come_is_being_made(daemon, capsys):
    daemon.answers["status"] = status(service(**BROKEN, retry_at=time.time() - 1))
    assert main(["status"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "chat: probe 1 answered 500 (PROBE_FAILED); being tried now"


def test_events_are_told_from_the_daemons_memory(daemon, capsys):
    for number in range(5):
        daemon.publish("swap.step", swap_id=42, step="load", status="running", detail="two words", ms=None, n=number)
    assert main(["events", "-n", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[10:] for line in lines] == [
        f'swap.step       swap_id=42 step=load status=running detail="two words" n={number}' for number in (3, 4)
    ]


@contextlib.contextmanager
def following(*argv: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A command that ends only by Ctrl-C, and the lines that it has printed so far."""
    command = [*COMMAND, *argv]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        lines: list[str] = []

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line.rstrip("\n"))

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield process, lines
            process.send_signal(signal.SIGINT)
            assert process.wait(DEADLINE_S) == 0
            assert process.stderr is not None
            assert process.stderr.read() == ""
        finally:
            process.kill()
            reader.join(DEADLINE_S)


def test_events_go_on_over_a_restart(daemon):
    daemon.publish("swap.created", swap_id=42)
    with following("--json", "events", "-f") as (_, lines):
        wait_until(lambda: len(lines) == 1)
        daemon.restart()
        daemon.publish("swap.finished", swap_id=42)
        wait_until(lambda: len(lines) == 3)
        assert [json.loads(line)["event"] for line in lines] == ["swap.created", "events.restarted", "swap.finished"]


def test_logs_follow_a_service_from_worker_to_worker(daemon):
    files = {"chat-3": ["one", "two"], "chat-4": ["new"]}
    newest = ["chat-3"]

    def logs(params: Any, peer: Any) -> Any:
        name = newest[0] if params["target"] == "chat" else params["target"]
        if name not in files:
            raise SwapdError(errors.UNKNOWN_WORKER, "No worker of chat has a log.")
        lines = list(files[name])
        return {"worker": name, "lines": lines[params.get("offset", 0) :], "offset": len(lines)}

    daemon.answers["logs"] = logs
    with following("logs", "chat", "-f") as (_, lines):
        wait_until(lambda: lines == ["one", "two"])
        files["chat-3"].append("three")
        wait_until(lambda: lines == ["one", "two", "three"])
        newest[0] = "none yet"
        asked = daemon.count("logs")
        wait_until(lambda: daemon.count("logs") > asked + 1, "asked again without a log")
        files["chat-3"].append("its last words")
        newest[0] = "chat-4"
        wait_until(lambda: lines[3:] == ["its last words", "==> chat-4", "new"])


def test_logs_of_a_worker_that_are_gone_end_the_following(daemon):
    daemon.answers["logs"] = {"worker": "chat-3", "lines": ["one"], "offset": 1}
    with subprocess.Popen(
        [*COMMAND, "logs", "chat-3", "-f"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        wait_until(lambda: daemon.count("logs") > 1)
        daemon.answers["logs"] = refuse(errors.UNKNOWN_WORKER)
        assert process.wait(DEADLINE_S) == 4


def test_watching_the_status_in_a_pipe_tells_what_changes(daemon):
    with following("status", "-w") as (_, lines):
        wait_until(lambda: len(lines) == 2)
        daemon.answers["status"] = status(service(model="b", revision=42))
        wait_until(lambda: len(lines) == 4)
        assert "b #42" in lines[3]


# --- on a terminal -------------------------------------------------------------------------------------------


def on_terminal(*argv: str, seen: Callable[[str], None] = lambda shown: None, **environment: str) -> tuple[int, str]:
    """`seen` is told what was shown so far, whenever there is more."""
    primary, secondary = pty.openpty()
    shown = bytearray()
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "120", **environment}
    with subprocess.Popen([*COMMAND, *argv], stdout=secondary, stderr=secondary, env=environ) as process:
        os.close(secondary)
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while data := os.read(primary, 4096):
                shown += data
                seen(shown.decode(errors="replace"))
        os.close(primary)
        status_ = process.wait(DEADLINE_S)
    return status_, shown.decode()


def test_a_terminal_gets_a_live_line_and_colours(daemon):
    running = swap_record(phase="Preparing", steps=[{"name": "load", "status": "running", "started_at": 0, "ms": None}])
    play(daemon, running)

    def end_it_once_it_is_seen_running(shown: str) -> None:
        if "load            running" in shown and daemon.answers["show"] != swap_record():
            daemon.answers["show"] = swap_record()
            daemon.publish("swap.phase", swap_id=42, phase="Succeeded")

    exit_status, shown = on_terminal("swap", "chat", "--to", "b", seen=end_it_once_it_is_seen_running)
    assert exit_status == 0
    assert "load            ok           1.2 s" in shown
    assert "b serves" in shown
    _, shown = on_terminal("status")
    assert "\x1b[32mHealthy" in shown


def test_no_color_is_respected(daemon):
    _, shown = on_terminal("status", NO_COLOR="1")
    assert "Healthy" in shown
    assert "\x1b[32m" not in shown


def test_sizes_survive_a_narrow_terminal(daemon):
    daemon.answers["devices"] = [device(total_bytes=141 * GIB)]
    exit_status, shown = on_terminal("devices", COLUMNS="60")
    assert exit_status == 0
    assert "gpu0" in shown
