"""swapd-cli and swaps that prove their candidate: what it asks for, what it prints of stages, how it exits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.control_daemon import FakeDaemon
from support.control_values import service, status, swap_record

from swapd.cli.main import main

STAGES = [
    {"name": "shadow 20%", "kind": "shadow", "percent": 20.0},
    {"name": "canary 5%", "kind": "canary", "percent": 5.0},
]


def proof(**changes: Any) -> dict[str, Any]:
    value = {
        **{"name": "guarded", "rehearsal": False, "stages": STAGES, "stage": 1, "stage_at": time.time()},
        **{"rules": ["error_rate < 1%", "p95 <= 1.2 x stable"], "verdict": None, "paused": None, "possible": ["pause"]},
    }
    return {**value, **changes}


def swapping(phase: str = "Progressing", **changes: Any) -> dict[str, Any]:
    step = {"name": "canary 5%", "status": "running", "started_at": time.time(), "ms": None, "detail": ""}
    values = {"strategy": "guarded", "delivery": proof(), "steps": [step], **changes}
    return swap_record(phase=phase, **values)


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path, {"status": status(service(swap=swapping())), "show": swapping()}) as made:
        monkeypatch.setenv("SWAPD_CONTROL", made.endpoint)
        yield made


def asked(daemon: FakeDaemon, method: str, answer: dict[str, Any]) -> list[dict[str, Any]]:
    """What the daemon is asked for, as it comes in."""
    seen: list[dict[str, Any]] = []

    def reply(params: Any, peer: Any) -> Any:
        seen.append(dict(params))
        return answer

    daemon.answers[method] = reply
    daemon.answers["show"] = answer
    return seen


def test_a_swap_asks_for_its_strategy_and_its_steps(daemon, capsys):
    seen = asked(daemon, "swap", swapping("Soaking"))
    assert main(["swap", "chat", "--to", "b", "--strategy", "guarded", "--steps", "5,25"]) == 0
    assert (seen[0]["strategy"], seen[0]["steps"]) == ("guarded", "5,25")
    assert "a #41 to b #42, guarded: " in capsys.readouterr().out


def test_a_swap_that_is_paused_ends_the_waiting_and_says_what_may_be_done(daemon, capsys):
    paused = proof(possible=["resume", "promote", "promote --full", "cancel"])
    asked(daemon, "swap", swapping("Paused", reason="12 of at least 50 requests", delivery=paused))
    assert main(["swap", "chat", "--to", "b"]) == 5
    lines = capsys.readouterr().out.splitlines()
    assert lines[-5:] == [
        "paused: 12 of at least 50 requests",
        "  swapd-cli resume chat",
        "  swapd-cli promote chat",
        "  swapd-cli promote chat --full",
        "  swapd-cli cancel chat",
    ]


@pytest.mark.parametrize(
    ("argv", "method", "params"),
    [
        (["promote", "chat", "--full", "--reason", "seen enough"], "promote", {"full": True, "reason": "seen enough"}),
        (["promote", "chat"], "promote", {}),
        (["rehearse", "chat", "--to", "b"], "rehearse", {"to": "b"}),
    ],
)
def test_controls_are_asked_for_and_waited_for(daemon, argv, method, params):
    seen = asked(daemon, method, swapping("Succeeded"))
    assert main(argv) == 0
    assert {**params, "service": "chat"}.items() <= seen[0].items()
    assert params.get("full") is not None or "full" not in seen[0], "not sent to a daemon that may not know it"


def test_a_rehearsal_says_that_nothing_was_changed(daemon, capsys):
    reason = "rehearsed, and nothing was changed: all rules are kept after 412 copies of requests"
    asked(daemon, "rehearse", swapping("Succeeded", reason=reason, delivery=proof(rehearsal=True)))
    assert main(["rehearse", "chat", "--to", "b"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"b: {reason}"


def test_a_pause_does_not_wait(daemon, capsys):
    seen = asked(daemon, "pause", swapping("Paused", reason="paused by ana"))
    assert main(["pause", "chat", "--reason", "lunch"]) == 0
    assert seen[0]["reason"] == "lunch"
    assert capsys.readouterr().out.endswith("; swapd-cli resume chat\n")


def test_resume_is_for_a_paused_swap_and_for_a_service_that_swapd_has_paused(daemon, capsys):
    daemon.answers["status"] = status(service(swap=swapping("Paused")))
    asked(daemon, "resume", swapping("Soaking", kept="resident", soak_until=time.time() + 600))
    assert main(["resume", "chat"]) == 0
    assert "b serves; a kept until" in capsys.readouterr().out
    daemon.answers["status"] = status(service())
    asked(daemon, "resume", service())
    assert main(["resume", "chat"]) == 0
    assert capsys.readouterr().out == "chat: Healthy, a serves\n"


def test_status_tells_the_share_the_verdict_and_whom_it_waits_for(daemon, capsys):
    verdict = {"verdict": "inconclusive", "text": "38 of at least 50 requests", "at": time.time()}
    weights = {
        "41": {"worker": "chat-3", "set": 95.0, "actual": 95.1, "requests": 951},
        "42": {"worker": "chat-4", "set": 5.0, "actual": 4.9, "requests": 49},
    }
    paused = swapping("Paused", reason="paused by ana", delivery=proof(verdict=verdict, possible=["resume", "cancel"]))
    daemon.answers["status"] = status(service(swap=paused, split={"weights": weights}))
    assert main(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "Paused to b #42: canary 5%" in lines[2]
    assert lines[3:] == [
        "chat: b #42 gets 4.9 % of the requests (5 % set)",
        "chat: inconclusive: 38 of at least 50 requests",
        "chat: paused: paused by ana",
        "chat: swapd-cli resume chat",
        "chat: swapd-cli cancel chat",
    ]


def test_show_tells_the_stages_the_rules_and_the_verdict(daemon, capsys):
    verdict = {"verdict": "fail", "text": "error_rate < 1%: 4.2 % failed", "at": time.time()}
    daemon.answers["show"] = swapping(delivery=proof(verdict=verdict))
    assert main(["show", "42"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "stages    2 of 2: canary 5% (shadow 20%, canary 5%)" in lines
    assert "rules     error_rate < 1%, p95 <= 1.2 x stable" in lines
    assert "verdict   fail: error_rate < 1%: 4.2 % failed" in lines
