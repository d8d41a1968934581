"""Runs the simulator: `python tests/simulate.py [--steps N] [--seed N] [--length N]` (make soak).

Stories, one after another, each from its own seed: so many moves, then calm, three times. The first that breaks a
promise is shortened and printed with its seed, which tells it again: `--seed SEED --steps 1`. Where the journal never
fails: `--without journal "journal lost"`.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from support.simulation.story import draw_moves, shorten, tell


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--steps", type=int, default=1_000_000, help="moves in all (default: a million)")
    arguments.add_argument("--seed", type=int, default=0, help="of the first story; the next has the next one")
    arguments.add_argument("--length", type=int, default=120, help="moves between two calms")
    arguments.add_argument("--without", nargs="*", default=(), help="moves that are left out, by name")
    given = arguments.parse_args()
    began, made, seed = time.monotonic(), 0, given.seed
    while made < given.steps:
        moves = list(draw_moves(seed, given.length, given.without))
        found = tell(seed, moves)
        if found is not None:
            report(seed, moves[: found[0] + 1], found[1])
            print(f"after {made + found[0]} moves, {time.monotonic() - began:.0f} s")
            return 1
        made, seed = made + len(moves), seed + 1
        if seed % 100 == 0:
            print(f"{made} moves, {seed - given.seed} stories, {time.monotonic() - began:.0f} s", flush=True)
    print(f"all promises held: {made} moves, {seed - given.seed} stories, {time.monotonic() - began:.0f} s")
    return 0


def report(seed: int, moves: list[tuple[str, int]], error: BaseException) -> None:
    moves = shorten(seed, moves, error)
    found = tell(seed, moves)
    assert found is not None
    _, error, world = found
    print(f"seed {seed}: {error}\n\nits {len(moves)} moves, shortened: {moves}\n\nwhat happened, the last of it:")
    print("\n".join(world.story))
    traceback.print_exception(error)


if __name__ == "__main__":
    sys.exit(main())
