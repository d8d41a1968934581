"""What a worker answers to an operation is typed before the core goes by it."""

import pytest

from swapd.core.errors import SwapdError
from swapd.core.model import Op, OpKind
from swapd.daemon.answers import checked

OP = Op(1, OpKind.LOAD, "chat", "chat-1")


@pytest.mark.parametrize(
    "result",
    [
        {"hooks": [["park"]]},
        {"hooks": 7},
        {"started_at": "now"},
        {"quiesced_at": [1.0]},
        {"turned_away": "many"},
    ],
)
def test_what_makes_no_sense_is_a_typed_failure_of_the_operation(result):
    with pytest.raises(SwapdError, match=r"chat-1 answered load in a way that makes no sense: .*\.") as raised:
        checked(OP, result)
    assert raised.value.code == "VERSION_MISMATCH"


def test_what_workers_say_and_what_later_ones_may_add_is_passed_on():
    told = {"hooks": ["park", "wake"], "started_at": 3, "quiesced_at": None, "listeners": 2, "later": object()}
    assert checked(OP, told) is told
