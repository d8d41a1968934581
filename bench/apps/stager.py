"""Reads the weights of a file into memory again and again: `python -m bench.apps.stager FILE stage|load|cache SECONDS`.

`stage`: as an Engine's stage hook does. `load`: the same at full speed. `cache`: into the page cache, as for a model
without a hook. It says {"bytes": n, "seconds": s} at the end. With `cold` as a last word the file is dropped from the
page cache before each time.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

from swapd.worker.page_cache import bring
from swapd.worker.weights import Weights


def once(path: str, how: str) -> None:
    if how == "cache":
        asyncio.run(bring([path], 60.0, lambda *figures: None))
    elif how == "stage":
        Weights(path).stage()
    else:
        Weights(path).host_tensors()


def main() -> None:
    path, how, seconds, *more = sys.argv[1:]
    begun, done = time.monotonic(), 0
    while time.monotonic() < begun + float(seconds):
        if more == ["cold"]:
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        once(path, how)
        done += os.path.getsize(path)
    print(json.dumps({"bytes": done, "seconds": time.monotonic() - begun}))


if __name__ == "__main__":
    main()
