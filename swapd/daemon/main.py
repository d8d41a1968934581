"""`swapd`: reads the configuration, and runs the daemon until it is told to stop, or to make way for its successor."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import logging
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import swapd
from swapd.core.config import Config
from swapd.core.errors import CONFIG_INVALID, JOURNAL_NEWER, SwapdError
from swapd.daemon.daemon import Daemon
from swapd.daemon.work import Formatter
from swapd.host.config_file import check, load_config
from swapd.host.journal import know_schema
from swapd.host.journal_reader import JournalReader
from swapd.host.succession import note_signals, succeed

MAX_FILES: Final = 65536
EXIT_CONFIG: Final = 2
EXIT_FAILED: Final = 1


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point. Returns the exit status: 0 stopped, 1 could not start, 2 the configuration is wrong, or the
    journal that of a later version."""
    arguments = _parse(argv)
    if arguments.check_config:
        path = Path(arguments.check_config)
        mistakes = check(path) or _journal_of(path)
        print("\n".join(mistakes) if mistakes else f"{arguments.check_config}: ok")
        return EXIT_CONFIG if mistakes else 0
    note_signals()
    try:
        config = load_config(Path(arguments.config))
        _set_up_logging(config.daemon.log_level)
        faulthandler.enable()  # a loop that hangs is ended by SIGABRT: it says where it hung
        _raise_file_limit()
        listeners = asyncio.run(_run(config))
        if listeners is not None:
            succeed(listeners)
        return 0
    except SwapdError as error:
        print(f"swapd: {error.message}", file=sys.stderr)
        return EXIT_CONFIG if error.code in (CONFIG_INVALID, JOURNAL_NEWER) else EXIT_FAILED
    except OSError as error:  # the successor's program cannot be executed any more; the workers serve on
        print(f"swapd: cannot go on in this process: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return 130


async def _run(config: Config) -> dict[str, int] | None:
    """The listeners for a successor in this process; None: this was the end."""
    async with contextlib.AsyncExitStack() as stack:
        daemon = await Daemon.build(config, stack)
        return await daemon.run()


def _journal_of(config: Path) -> list[str]:
    """Why a daemon with this configuration would not start for its journal, as far as it can be read."""
    journal = Path(load_config(config).daemon.state_dir) / "journal.db"
    try:
        with JournalReader(journal) as reader:
            know_schema(reader.schema, journal)
    except SwapdError as error:
        return [error.message] if error.code == JOURNAL_NEWER else []
    return []


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="swapd",
        description="Runs model servers behind fixed addresses and replaces them without their clients noticing.",
        epilog="Talk to it with swapd-cli. Example: swapd --config /etc/swapd/swapd.toml",
    )
    parser.add_argument("--config", metavar="FILE", default="/etc/swapd/swapd.toml", help="default: %(default)s")
    parser.add_argument(
        "--check-config",
        metavar="FILE",
        help="name every mistake in FILE, or a journal there that is of a later version, and exit (2 if there is any)",
    )
    parser.add_argument("--version", action="version", version=f"swapd {swapd.__version__}")
    return parser.parse_args(argv)


def _raise_file_limit() -> None:
    """libzmq ends the process when accept() finds no descriptor free (pyzmq issue 1591), and 1,024 are soon used up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _set_up_logging(level: str) -> None:
    """One line an event on stderr; under systemd the journal adds the time."""
    stamp = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s "
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(f"{stamp}%(levelname).1s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])


if __name__ == "__main__":
    sys.exit(main())
