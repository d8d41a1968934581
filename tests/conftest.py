"""Puts tests/ on the path, so that `support` is importable from every test, and sees to the signals of children."""

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

# A test run in the background of a script ignores SIGINT, and so would every process that a test sends one.
signal.signal(signal.SIGINT, signal.default_int_handler)
