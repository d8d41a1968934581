from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from swapd.front.relay.routing import Route, Table, choose

A, B = Route("chat-1", 1, "unix:/a"), Route("chat-2", 2, "unix:/b")


def test_the_one_with_the_fewest_in_flight_and_the_first_of_equals():
    table = Table(1, (A, B))
    assert choose(table, {}) is A
    assert choose(table, {"chat-1": 1}) is B
    assert choose(table, {"chat-1": 1, "chat-2": 1}) is A


def test_nobody_while_it_holds_or_where_nobody_can_be_reached():
    assert choose(Table(1, (A, B), hold=True), {}) is None
    assert choose(Table(1), {}) is None
    assert choose(Table(1, (A, B)), {}, unreachable={"chat-1", "chat-2"}) is None
    assert choose(Table(1, (A, B)), {}, unreachable={"chat-1"}) is B
    assert choose(Table(1, (Route("chat-1", 1, "unix:/a", weight=0),)), {}) is None


@given(st.floats(0.1, 10), st.floats(0.1, 10))
def test_weights_share_what_is_in_flight(one, other):
    table = Table(1, (Route("x", 1, "unix:/x", one), Route("y", 2, "unix:/y", other)))
    in_flight = Counter()
    for _ in range(400):
        in_flight[choose(table, in_flight).worker] += 1
    assert abs(in_flight["x"] / 400 - one / (one + other)) < 0.01
