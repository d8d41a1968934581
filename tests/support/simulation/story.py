"""A story: a world, and the moves made in it. Told from a seed, told again from its moves, and shortened."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from support.front_world import Broken
from support.simulation.moves import MOVES, calm
from support.simulation.processes import GIB
from support.simulation.world import World

from swapd.core.model import Kind

Moves = list[tuple[str, int]]

ROUNDS = 3  # each is so many moves, then calm


def begin(seed: int) -> World:
    """Two services on one device, each behind a gate or not, of models with and without a front of their own."""
    draw = random.Random(seed)
    kinds = {model: draw.choice([Kind.DIRECT, Kind.ENGINE]) for model in ("a", "b", "big", "bad")}
    hooks = draw.choice([(), (), ("park", "wake"), ("stage",)])
    world = World(total=draw.choice([24, 36, 64]) * GIB, hooks=frozenset(hooks), kinds=kinds)
    for service, model in (("chat", "a"), ("embed", "b")):
        world.add(service, model, gated=draw.random() < 0.4)
    world.reads = draw.random() < 0.4
    return world


def draw_moves(seed: int, length: int, without: Sequence[str] = ()) -> Iterator[tuple[str, int]]:
    draw = random.Random(seed)
    names = [name for name in MOVES if name not in without]
    weights = [MOVES[name][0] for name in names]
    for _ in range(ROUNDS):
        calmer = draw.random()  # some rounds with few faults, some with many
        for name in draw.choices(names, weights, k=length):
            if weights[names.index(name)] < 4 and draw.random() < calmer:
                name = "busy"
            yield name, draw.randrange(1 << 20)
        yield "calm", 0


def make(world: World, name: str, pick: int) -> None:
    """One move, and whether the promises hold after it."""
    if name == "calm":
        calm(world)
        return
    MOVES[name][1](world, pick)
    world.books.check()


def tell(seed: int, moves: Sequence[tuple[str, int]]) -> tuple[int, BaseException, World] | None:
    """Where a story breaks a promise, if it does: the number of the move, and why."""
    world = begin(seed)
    for number, (name, pick) in enumerate(moves):
        try:
            make(world, name, pick)
        except Exception as error:
            return number, error, world
    return None


def shorten(seed: int, moves: Moves, error: BaseException, *, tries: int = 3000) -> Moves:
    """Leave out what the failure does not need."""
    failure = kind(error)
    size = max(1, len(moves) // 2)
    while tries > 0:
        at, before = 0, len(moves)
        while at < len(moves) and tries > 0:
            shorter = moves[:at] + moves[at + size :]
            tries -= 1
            found = tell(seed, shorter)
            if found is not None and kind(found[1]) == failure:
                moves = shorter[: found[0] + 1]
            else:
                at += size
        if size == 1 and len(moves) == before:
            break
        size = max(1, size // 2)
    return moves


def kind(error: BaseException) -> str:
    """The same failure: of the same promise."""
    return str(error)[:9] if isinstance(error, Broken) else type(error).__name__
