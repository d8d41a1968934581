"""A model that takes memory for real, in steps, and not as it was said: what the guard is tested with.

TAKES: steps in a row, "load:300" (MiB, at load), "fork:300" (a child of its own takes it, at load), "probe:300" (at the
first probe), "wait:3" (seconds, at load). PIECE_MB: how much at once, 8 if not set; PAUSE_S: after each piece, 0.01 if
not set. What it answers is `model_app`'s.
"""

import os
import time

from model_app import app as answer

PIECE = int(os.environ.get("PIECE_MB", "8")) << 20
PAUSE_S = float(os.environ.get("PAUSE_S", "0.01"))
TAKES = [step.split(":") for step in os.environ["TAKES"].split()]
held = []
due = [int(mib) for when, mib in TAKES if when == "probe"]


def take(mib):
    left = mib << 20
    while left > 0:
        held.append(bytearray(b"w") * min(PIECE, left))
        left -= PIECE
        time.sleep(PAUSE_S)


def fork(mib):
    if os.fork() == 0:
        os.setsid()
        take(mib)
        while True:
            time.sleep(60)


class Hungry:
    async def app(self, scope, receive, send):
        if scope["type"] == "http" and scope["path"] == "/probe" and due:
            take(due.pop())
        await answer(scope, receive, send)

    def load(self):
        for when, mib in TAKES:
            if when == "load":
                take(int(mib))
            elif when == "fork":
                fork(int(mib))
            elif when == "wait":
                time.sleep(int(mib))
