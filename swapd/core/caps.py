"""Hard limits: what a worker may take of its device at the most, wherever something can hold it to that.

On the host's memory the memory.max of its cgroup, where systemd runs it; on a GPU the limit of an MPS server, and of
PyTorch's allocator. A MIG slice is a limit by itself, and vLLM keeps to its own fraction (`core.presets`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from swapd.core.ledger import MIB
from swapd.core.model import DeviceReading, Footprint, FootprintSource

LEAST_MARGIN_BYTES: Final = 64 * MIB
MARGIN_PARTS: Final = 10  # a tenth of the need


def cap_of(footprint: Footprint, readings: Sequence[DeviceReading]) -> int | None:
    """On each of its devices, of a worker whose model was declared to need so much: on top of that the headroom, which
    is nobody's. One that was seen to take more than was declared is held to that, with the same margin: it is the last
    that should go without.

    None: not limited. An estimate does not know what loading takes for a moment, and a learned peak has not seen it: to
    end a model for that would be worse than to let it be. The guard watches it.
    """
    need_bytes = footprint.need_bytes
    declared = footprint.source is FootprintSource.DECLARED or footprint.beyond_declared
    if not readings or need_bytes is None or not declared:
        return None
    return need_bytes + max(max(r.headroom_bytes for r in readings), need_bytes // MARGIN_PARTS, LEAST_MARGIN_BYTES)
