"""Puts tests/ on the path, so that `support` is importable from every test; sees to children's signals, and to time."""

import signal
import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

# A test run in the background of a script ignores SIGINT, and so would every process that a test sends one.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Hypothesis fails an example that takes 200 ms, which on a busy machine any may.
settings.register_profile("swapd", settings.get_profile(settings.get_current_profile_name()), deadline=None)
settings.load_profile("swapd")
