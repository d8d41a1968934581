"""Whether this worker has been told to stop: for hooks that take their time on the thread that would be told.

    if stopping.is_set(): ...

Set from any thread; never cleared, for the process ends.
"""

from __future__ import annotations

import threading
from typing import Final

stopping: Final = threading.Event()
