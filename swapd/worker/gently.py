"""Work beside a model that serves: last in line for processors and disks.

Linux has both priorities by thread, and without privileges neither can be raised again: so such work has threads of its
own. The disk's counts where its scheduler looks at it (bfq, mq-deadline; not `none`).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from typing import Final

NICEST: Final = 19
_IOPRIO_SET: Final = {"x86_64": 251, "aarch64": 30}  # it has no wrapper in libc: ioprio_set(2)
_WHO_PROCESS: Final = 1
_IDLE: Final = 3 << 13


def go_last() -> None:
    """From here on the calling thread works only when nobody else wants to. For the rest of its life."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, NICEST)  # 0: on Linux the thread that calls
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None).syscall(number, _WHO_PROCESS, 0, _IDLE)
