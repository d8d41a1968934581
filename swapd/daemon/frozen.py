"""The settings that each revision was made with, secrets and all, for the next daemon: a file each, 0600.

In the runtime directory, which is memory: they last as long as the workers that were started with them, and no secret
of a model comes to rest on a disk by swapd.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Collection
from pathlib import Path

from swapd.core.config import ModelConfig
from swapd.wire import saved

log = logging.getLogger("swapd.knowledge")


class FrozenSettings:
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, service: str, revision: int, text: str) -> None:
        """Whole or not at all. A disk that refuses it costs the next daemon the settings, and nothing now."""
        path = self._path(service, revision)
        partial = path.with_suffix(".new")
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            partial.replace(path)
        except OSError as error:
            log.warning("knowledge.settings_not_kept path=%s error=%s", path, error)

    def read(self, service: str, revision: int) -> ModelConfig | None:
        path = self._path(service, revision)
        try:
            return saved.load(ModelConfig, path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("knowledge.settings_unreadable path=%s error=%s", path, error)
            return None

    def rename(self, old: str, new: str) -> None:
        """All those of a service that has got another name."""
        for path in self._directory.glob("*.json"):
            service, _, revision = path.stem.rpartition("-")
            if service == old and revision.isdigit():
                try:
                    path.replace(self._path(new, int(revision)))
                except OSError as error:
                    log.warning("knowledge.settings_not_kept path=%s error=%s", path, error)

    def forget_all_but(self, known: Collection[tuple[str, int]]) -> None:
        kept = {self._path(*key) for key in known}
        for path in self._directory.glob("*.json"):
            if path not in kept:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _path(self, service: str, revision: int) -> Path:
        return self._directory / f"{service}-{revision}.json"
