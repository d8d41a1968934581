"""swapd-cli: the command line of swapd.

Duty: arguments in, exit status out; every error as one line on stderr, never a traceback.

Source: docs/cli.md; a test compares its verbs with the parser's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

from swapd import __version__
from swapd.cli import looking, verbs
from swapd.cli.looking import Looking
from swapd.cli.render import Output
from swapd.cli.text import printable
from swapd.cli.verbs import Verbs
from swapd.client import Client, SwapdError
from swapd.core import errors
from swapd.core.units import NotAQuantity, parse_duration

BROKEN_PIPE: Final = 141  # 128 + SIGPIPE, as a shell counts it
# Ctrl-C is the ordinary end of these, and undoes nothing.
ENDLESS: Final = frozenset({"status", "events", "logs", "wait"})
# What can be told without the daemon.
OFFLINE: Final = ("status", "history", "show", "logs", "workers")

EPILOG: Final = """\
exit status:
  0 done   1 the swap failed or was rolled back   2 usage   3 no daemon   4 refused   5 not finished
  of doctor: 0 nothing wrong   1 something found

examples:
  swapd-cli status
  swapd-cli plan chat --to b
  swapd-cli swap chat --to b --reason "retrained on Monday's data"
  swapd-cli rollback chat
  swapd-cli --offline status
"""


def main(argv: Sequence[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # replaced by a test, or closed
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.offline and arguments.verb not in OFFLINE:
        parser.error(f"--offline: {arguments.verb} needs the daemon; without it there are {', '.join(OFFLINE)}")
    try:
        return _run(arguments)
    except SwapdError as error:
        return _tell(error, arguments)
    except KeyboardInterrupt:
        if arguments.verb in ENDLESS:
            return looking.DONE if arguments.verb != "wait" else verbs.UNFINISHED
        print("interrupted; it may have been acted on: swapd-cli status", file=sys.stderr)
        return verbs.UNFINISHED
    except BrokenPipeError:
        # Whoever read has gone. Python would complain about it once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def _run(arguments: argparse.Namespace) -> int:
    if arguments.verb == "doctor":
        from swapd.cli.doctor import doctor

        return doctor(arguments, Output())
    if arguments.offline:
        from swapd.cli.offline import Offline, config_path  # late: it reads more of the host than a client needs

        return Looking(Offline(config_path(arguments.config)), arguments, Output()).run()
    with Client(arguments.connect) as client:
        return Verbs(client, arguments, Output()).run()


def _tell(error: SwapdError, arguments: argparse.Namespace) -> int:
    if arguments.json:
        problem = {"code": error.code, "message": error.message, "details": dict(error.details)}
        print(json.dumps({"error": problem}, indent=2, ensure_ascii=False))
    hint = ""
    if error.code == errors.DAEMON_UNREACHABLE and arguments.verb in OFFLINE:
        hint = f"; to read what is known without it: swapd-cli --offline {arguments.verb}, or swapd-cli doctor"
    print(f"swapd-cli: {printable(error.message)} ({error.code}){hint}", file=sys.stderr)
    return {
        errors.DAEMON_UNREACHABLE: verbs.UNREACHABLE,
        errors.TIMEOUT: verbs.UNFINISHED,
        errors.INTERNAL: verbs.FAILED,
    }.get(error.code, verbs.REFUSED)


# --- arguments ---------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="swapd-cli",
        description="Replace the model behind an address while its clients keep using it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"swapd-cli {__version__}")
    _add_common(parser, connect=None, json=False, actor=None, offline=False, config=None)
    add = _Adder(parser.add_subparsers(dest="verb", metavar="VERB", required=True))

    swap = add("swap", "replace a service's model, and wait until clients are served by the new one", "SERVICE")
    swap.add_argument("--to", required=True, metavar="MODEL")
    _add_how(swap)
    swap.add_argument("--dry-run", action="store_true", help="only show the plan")
    _add_waiting(swap)
    plan = add("plan", "what a swap would do, and why", "SERVICE")
    plan.add_argument("--to", required=True, metavar="MODEL")
    _add_how(plan)
    status = add("status", "the services, and which model serves", "[SERVICE]")
    status.add_argument("-w", "--watch", action="store_true", help="go on showing it")
    add("devices", "device memory: total, free, reserved, and by whom")
    add("workers", "the worker processes")
    rollback = add("rollback", "return to the previous revision, or to the one named", "SERVICE")
    rollback.add_argument("--to", metavar="REVISION", help="a revision's number or a model")
    rollback.add_argument("--max-outage", type=_duration, metavar="T", help="refuse a longer expected outage")
    _add_waiting(rollback)
    cancel = add("cancel", "end the swap in progress; the old revision serves on", "SERVICE|ID")
    _add_waiting(cancel)
    rehearse = add("rehearse", "prove a model on copies of requests, and end before any client notices", "SERVICE")
    rehearse.add_argument("--to", required=True, metavar="MODEL")
    _add_how(rehearse)
    _add_waiting(rehearse)
    pause = add("pause", "let the swap in progress go no further by itself", "SERVICE")
    pause.add_argument("--reason", metavar="TEXT", help="why, for the history")
    _add_waiting(add("resume", "have a paused swap go on, or a service that swapd has paused", "SERVICE"))
    promote = add("promote", "on to the next stage at once, whatever was measured", "SERVICE")
    promote.add_argument("--full", action="store_true", help="past all stages, or to the end of the soak")
    _add_waiting(promote)
    restart = add("restart", "a swap to the same model", "SERVICE")
    _add_how(restart)
    _add_waiting(restart)
    history = add("history", "the swaps, newest first", "[SERVICE]")
    history.add_argument("-n", "--limit", type=_whole, metavar="N", help="at most so many (20)")
    add("show", "one swap: steps, times, memory, and what went wrong", "ID")
    wait = add("wait", "until the swap in progress has ended", "SERVICE")
    wait.add_argument("--healthy", action="store_true", help="and until the service is Healthy")
    wait.add_argument("--deadline", type=_duration, metavar="T", help="wait no longer; exit status 5")
    events = add("events", "what has happened")
    events.add_argument("-f", "--follow", action="store_true", help="and what happens next")
    events.add_argument("-n", "--lines", type=_whole, default=50, metavar="N", help="so many of the past (50)")
    logs = add("logs", "what a worker wrote", "SERVICE|WORKER")
    logs.add_argument("-f", "--follow", action="store_true", help="and what it writes next")
    logs.add_argument("-n", "--lines", type=_whole, default=100, metavar="N", help="so many of the past (100)")
    doctor = add("doctor", "what is wrong, and what to try next; works without the daemon too", "[SERVICE]")
    doctor.add_argument("--bundle", metavar="FILE", help="also write all of it, without secrets, to a new .tar.gz")
    reload = add("reload", "read the configuration again")
    reload.add_argument("--dry-run", action="store_true", help="only say what would change")
    stop = add("stop-workers", "stop every worker: no service answers afterwards")
    stop.add_argument("--yes", action="store_true", help="do not ask")
    return parser


EXAMPLES: Final[dict[str, str]] = {
    "swap": """\
  swapd-cli swap chat --to b
  swapd-cli swap chat --to b --strategy in-place --max-outage 2m
  swapd-cli swap chat --to b --strategy guarded
  swapd-cli swap chat --to b --detach --reason "new weights" && swapd-cli wait chat""",
    "plan": "  swapd-cli plan chat --to b\n  swapd-cli --json plan chat --to b | jq .strategy",
    "status": "  swapd-cli status\n  swapd-cli status chat -w",
    "devices": "  swapd-cli devices\n  swapd-cli --json devices | jq '.[].available_bytes'",
    "workers": "  swapd-cli workers",
    "rollback": "  swapd-cli rollback chat\n  swapd-cli rollback chat --to 41",
    "cancel": "  swapd-cli cancel chat\n  swapd-cli cancel 42",
    "rehearse": "  swapd-cli rehearse chat --to b",
    "pause": "  swapd-cli pause chat --reason 'wait for ana'",
    "resume": "  swapd-cli resume chat",
    "promote": "  swapd-cli promote chat\n  swapd-cli promote chat --full",
    "restart": "  swapd-cli restart chat",
    "history": "  swapd-cli history chat -n 5\n  swapd-cli --json history | jq '.[0].phase'",
    "show": "  swapd-cli show 42",
    "wait": "  swapd-cli wait chat\n  swapd-cli wait chat --healthy --deadline 5m",
    "events": "  swapd-cli events -f\n  swapd-cli --json events -f | jq -c 'select(.event == \"swap.finished\")'",
    "logs": "  swapd-cli logs chat -f\n  swapd-cli logs chat-3 -n 500",
    "doctor": "  sudo swapd-cli doctor\n  sudo swapd-cli doctor chat --bundle /tmp/chat.tar.gz",
    "reload": "  swapd-cli reload --dry-run && swapd-cli reload",
    "stop-workers": "  swapd-cli stop-workers --yes",
}

_POSITIONALS: Final[dict[str, dict[str, Any]]] = {
    "SERVICE": {"dest": "service"},
    "[SERVICE]": {"dest": "service", "nargs": "?", "metavar": "SERVICE"},
    "SERVICE|ID": {"dest": "target"},
    "SERVICE|WORKER": {"dest": "target"},
    "ID": {"dest": "id"},
}


class _Adder:
    def __init__(self, subparsers: Any) -> None:
        self._subparsers = subparsers

    def __call__(self, name: str, summary: str, positional: str | None = None) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = self._subparsers.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=f"examples:\n{EXAMPLES[name]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if positional is not None:
            options = {"metavar": positional, **_POSITIONALS[positional]}
            if positional == "ID":
                options["type"] = _whole
            parser.add_argument(options.pop("dest"), **options)
        # Also after the verb; what is not given there must not undo what came before it.
        _add_common(parser, *[argparse.SUPPRESS] * 5)
        return parser


def _add_common(
    parser: argparse.ArgumentParser, connect: Any, json: Any, actor: Any, offline: Any, config: Any
) -> None:
    where = "where the daemon listens (SWAPD_CONTROL; ipc:///run/swapd/control.sock)"
    parser.add_argument("--connect", metavar="ENDPOINT", default=connect, help=where)
    parser.add_argument("--json", action="store_true", default=json, help="the daemon's answer as it is")
    parser.add_argument("--actor", metavar="NAME", default=actor, help="who asks, added to the user in the history")
    without = f"do not ask the daemon, but its journal and the workers ({', '.join(OFFLINE)})"
    parser.add_argument("--offline", action="store_true", default=offline, help=without)
    file = "with --offline and doctor: swapd's configuration (SWAPD_CONFIG; /etc/swapd/swapd.toml)"
    parser.add_argument("--config", metavar="FILE", default=config, help=file)


def _add_how(parser: argparse.ArgumentParser) -> None:
    strategies = "auto, dual, in-place, canary, shadow, guarded, or a [strategies.S] of the configuration"
    parser.add_argument("--strategy", metavar="S", help=strategies)
    parser.add_argument("--steps", metavar="P,P", help="shares of the requests for a canary, in percent: 5,25,50")
    parser.add_argument("--max-outage", type=_duration, metavar="T", help="refuse a longer expected outage, e.g. 2m")
    names = "also if clients could not name the model in requests as they do now"
    parser.add_argument("--allow-name-mismatch", action="store_true", help=names)
    breaking = "also if clients would break, by what is known of the two models' interfaces"
    parser.add_argument("--allow-breaking", action="store_true", help=breaking)


def _add_waiting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reason", metavar="TEXT", help="why, for the history")
    parser.add_argument("--detach", action="store_true", help="do not wait")
    parser.add_argument(
        "--deadline", type=_duration, metavar="T", help="wait no longer; the swap goes on, exit status 5"
    )


def _duration(value: str) -> float:
    try:
        return parse_duration(value)
    except NotAQuantity as wrong:
        raise argparse.ArgumentTypeError(str(wrong)) from None


def _whole(value: str) -> int:
    if not value.isascii() or not value.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number, not {value!r}")
    return int(value)


if __name__ == "__main__":
    sys.exit(main())
