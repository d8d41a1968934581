"""The way back, as a plan tells it beforehand."""

from __future__ import annotations

import pytest

from swapd.core.foresight import WayBack, way_back
from swapd.core.model import FootprintSource, Strategy
from swapd.core.placement import Placement


def placed(strategy, **changes):
    return Placement(strategy, "gpu0", "why", (), (), None, None, FootprintSource.UNKNOWN, **changes)


@pytest.mark.parametrize(
    ("placement", "way"),
    [
        (placed(Strategy.DUAL), WayBack("instant", 0.0, "cold", 9.0)),
        (placed(Strategy.IN_PLACE, parks=("chat-1",)), WayBack("parked", 0.8, "cold", 9.0)),
        (placed(Strategy.IN_PLACE, stops=("chat-1",)), WayBack("cold", 9.0, "cold", 9.0)),
        (placed(Strategy.START), WayBack("none")),
        (placed(Strategy.DUAL, is_return=True), WayBack("none")),
    ],
)
def test_it_is_resident_parked_or_cold_and_cold_after_the_soak(placement, way):
    assert way_back(placement, can_load=True, load_s=9.0, wake_s=0.8) == way


@pytest.mark.parametrize(
    ("placement", "kind"),
    [
        (placed(Strategy.DUAL), "instant"),
        (placed(Strategy.IN_PLACE, parks=("chat-1",)), "parked"),
        (placed(Strategy.IN_PLACE, stops=("chat-1",)), "none"),
    ],
)
def test_over_changed_files_there_is_no_way_back_but_what_is_kept(placement, kind):
    back = way_back(placement, can_load=False, load_s=9.0, wake_s=0.8)
    assert (back.kind, back.later, back.later_s) == (kind, "none", None)
