"""Who has locked a directory: how to find a daemon that does not answer, without getting in its way.

Duty: read /proc/locks. Trying the lock instead would have a daemon that starts at that instant believe that another
one runs. Source: proc_locks(5), flock(2).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

_ROW: Final = re.compile(r"^\d+: FLOCK\s+\S+\s+WRITE (\d+) ([0-9a-f]+):([0-9a-f]+):(\d+) ", re.MULTILINE)


def holder(path: Path) -> int | None:
    """The pid of the process that holds an exclusive flock() on it. None: nobody, or it cannot be told (another pid
    namespace, a file system whose device numbers differ from the kernel's own)."""
    try:
        found = path.stat()
        locks = Path("/proc/locks").read_text(encoding="ascii")
    except OSError:
        return None
    wanted = (os.major(found.st_dev), os.minor(found.st_dev), found.st_ino)
    for pid, major, minor, inode in _ROW.findall(locks):
        if (int(major, 16), int(minor, 16), int(inode)) == wanted and int(pid) > 0:
            return int(pid)
    return None
