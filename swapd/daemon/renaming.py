"""At a start: what the last daemon has left of a service that has another name in the configuration by now."""

from __future__ import annotations

import logging
from pathlib import Path

from swapd.core.config import Config
from swapd.core.model import State
from swapd.core.renaming import rename, renamed
from swapd.daemon.frozen import FrozenSettings
from swapd.daemon.spec import recorded, rename_service

log = logging.getLogger("swapd")


def follow_names(state: State, config: Config) -> State:
    """The journal's state, by the names of now. Records of workers and settings of revisions go first, so that a daemon
    that dies before the journal is written does all of it again."""
    names = renamed(state, {name: service.listen for name, service in config.services.items()})
    runtime = Path(config.daemon.runtime_dir)
    for old, new in names.items():
        log.info("service.renamed service=%s was=%s", new, old)
        FrozenSettings(runtime / "revisions").rename(old, new)
    for path in recorded(runtime / "w") if names else ():
        try:
            rename_service(path, names)
        except (OSError, ValueError) as error:
            log.error("service.record_not_renamed path=%s error=%s", path, error)
    return rename(state, names)
