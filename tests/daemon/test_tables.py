"""A gate's table, from an operation: what the gate reads of it is what was meant."""

from swapd.core.config import ServiceConfig
from swapd.core.delivery import Delivery, Shadow, Split
from swapd.core.model import Op, OpKind
from swapd.daemon.tables import table
from swapd.front.relay.routing import read_table

OLD, NEW = (
    {"worker": f"chat-{n}", "revision": n, "address": f"unix:/r/{n}.sock", "blocked": [], "uid": None, "reuse": True}
    for n in (1, 2)
)
CHAT = ServiceConfig(name="chat", listen=("127.0.0.1:8000",), model="a", soak_s=600.0)
KEYED = ServiceConfig(name="chat", listen=("127.0.0.1:8000",), model="a", soak_s=30.0, session_key="header:x-user")
CANARY = Delivery("canary", match=("header", "x-canary", "always"))


def made(split=None, main=OLD, other=NEW, delivery=CANARY, service=CHAT, **op):
    """As the gate reads it."""
    order = Op(7, OpKind.POINT, "chat", "chat-gate-3", "chat-1", epoch=5, split=split, **op)
    return read_table(table(order, main, other, delivery, service))


def shares(found):
    return [(route.worker, route.weight) for route in found.routes]


def test_one_who_answers_all_is_no_split():
    found = made(delivery=None)
    assert (shares(found), found.split, found.label, found.session_key) == ([("chat-1", 1.0)], False, "", None)


def test_nobody_holds_or_turns_away():
    assert made(main=None).hold
    assert made(main=None, turn_away=True).turns_away


def test_a_canary_has_its_percent_and_whoever_asks_for_it():
    split = Split("chat-2", 5.0)
    found = made(split)
    assert (shares(found), found.split) == ([("chat-1", 95.0), ("chat-2", 5.0)], True)
    assert [(m.kind, m.name, m.value) for m in found.routes[1].match] == [("header", b"x-canary", b"always")]
    assert Split.parse(found.label) == split


def test_where_the_other_has_just_died_the_first_answers_all_and_the_label_says_what_was_meant():
    found = made(Split("chat-2", 5.0), other=None)
    assert (shares(found), found.split) == ([("chat-1", 1.0)], False)
    assert Split.parse(found.label) == Split("chat-2", 5.0)


def test_sessions_are_known_before_anybody_shares_and_stay_with_the_old_one_after_the_cutover():
    before = made(service=KEYED)
    assert (before.session_key.name, before.keep_sessions_s) == (b"x-user", 0.0), "they go by their place"
    found = made(Split("chat-1", sessions=True), main=NEW, other=OLD, service=KEYED)
    assert (shares(found), found.keep_sessions_s) == ([("chat-1", 0.0), ("chat-2", 100.0)], 60.0)
    assert not any(route.match for route in found.routes), "nobody is sent to the old one by what it says"


def test_a_shadow_gets_copies_and_no_client():
    shadow = Shadow(share=25.0, noise=40.0, compare="label", pointer="/scores", ignore=("/id",), keep=3)
    found = made(Split("chat-2", shadow=True), delivery=Delivery("shadow", shadow=shadow))
    assert shares(found) == [("chat-1", 1.0)]
    assert (found.shadow.worker, found.shadow.address) == ("chat-2", "unix:/r/2.sock")
    assert (found.shadow.share, found.shadow.noise, found.shadow.keep) == (0.25, 0.4, 3)
    assert found.shadow.params["compare"]["how"] == "label"


def test_the_label_tells_rounds_apart():
    assert made(Split("chat-2", 5.0)).label != made(Split("chat-2", 5.0, round=1)).label
