"""Whether the host's memory can hold what an in-place swap would put there: weights that are staged or parked. Pure.

Where it cannot, nothing is refused: an unstaged model loads from its files, and an old one that cannot be parked is
stopped. Clients wait longer, and the host's kernel does not end somebody at random.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from swapd.core.sizes import human_bytes

HEADROOM_BYTES: Final = 1 << 30  # what the kernel, the daemon and the fronts must find free at any time


@dataclass(frozen=True, slots=True)
class HostRoom:
    """`stage_bytes`: what the new model copies there before clients are held; `park_bytes`: the old one, where it parks
    instead of being stopped. 0: nothing, or what is there already. `free_bytes` None: not known."""

    free_bytes: int | None
    stage_bytes: int = 0
    park_bytes: int = 0

    @property
    def stages(self) -> bool:
        return not self.stage_bytes or self._holds(self.stage_bytes)

    @property
    def parks(self) -> bool:
        """Beside what is staged, which shortens every swap; a parked model only shortens a return."""
        return not self.park_bytes or self._holds(self.park_bytes + (self.stage_bytes if self.stages else 0))

    def words(self, new: str, old: str) -> str:
        """Why something is not done; empty: everything is."""
        free = "is unknown" if self.free_bytes is None else f"has {human_bytes(self.free_bytes, down=True)} free"
        parts = []
        if not self.stages:
            parts.append(f"{new} is not staged, which takes {human_bytes(self.stage_bytes, up=True)}")
        if not self.parks:
            parts.append(f"{old} is not parked, which takes {human_bytes(self.park_bytes, up=True)}")
        told = f"the host's memory {free}, of which {human_bytes(HEADROOM_BYTES)} is headroom"
        return f"{' and '.join(parts)}: {told}" if parts else ""

    def _holds(self, size_bytes: int) -> bool:
        return self.free_bytes is not None and size_bytes <= self.free_bytes - HEADROOM_BYTES
