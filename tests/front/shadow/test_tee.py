"""The tee: exact shares, what is never copied, bounds, and that everything it has collected is let go of."""

import random

import pytest

from swapd.front.relay.heads import Via, parse_answer, parse_request
from swapd.front.relay.routing import Route
from swapd.front.shadow import tee as tee_module
from swapd.front.shadow.frames import FrameReader
from swapd.front.shadow.settings import read_shadow
from swapd.front.shadow.tee import Tee

STABLE = Route("chat-1", 1, "unix:/stable")
CANDIDATE = {"worker": "chat-2", "revision": 2, "address": "unix:/candidate"}


class Process:
    def __init__(self):
        self.frames = []
        self.refuses = ""

    def send(self, pieces, size):
        assert size == sum(map(len, pieces))
        if not self.refuses:
            self.frames += FrameReader().feed(b"".join(pieces))
        return self.refuses

    def of(self, kind):
        return [frame for frame in self.frames if frame.meta["kind"] == kind]


@pytest.fixture
def process():
    return Process()


@pytest.fixture
def make(process):
    def make(**settings):
        return Tee(read_shadow({**CANDIDATE, **settings}), process.send)

    return make


def request(method="GET", target="/", headers="", body=b""):
    if body:
        headers += f"content-length: {len(body)}\r\n"
    return parse_request(f"{method} {target} HTTP/1.1\r\nhost: a\r\n{headers}\r\n".encode())


def answer(head="content-length: 2", status="200 OK", method=b"GET"):
    return parse_answer(f"HTTP/1.1 {status}\r\n{head}\r\n\r\n".encode(), method)


def whole(tee, head=None, told=None, pieces=(b"ok",), asked=(), stable=STABLE):
    copy = tee.begin(head or request(), Via("", False), stable)
    if copy is not None:
        if asked:
            copy.asked(list(asked))
        copy.answered(told or answer(), list(pieces))
        copy.end(sent=True)
    return copy


@pytest.mark.parametrize("share", [0.01, 0.05, 0.1, 0.2, 1 / 3, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("count", [100, 1000])
def test_the_share_is_exact(make, process, share, count):
    tee = make(share=share)
    for _ in range(count):
        whole(tee)
    assert len(process.of("copy")) == pytest.approx(share * count, abs=0.5)


def test_a_throttled_share_is_exact_too_and_the_rest_is_watched(make, process):
    tee = make(share=0.5)
    tee.share = 0.05
    for _ in range(400):
        whole(tee)
    assert (len(process.of("copy")), len(process.of("watched"))) == (20, 180)
    assert not any(tee.dropped.values())


def test_no_share_copies_nothing(make, process):
    tee = make(share=0)
    for _ in range(10):
        whole(tee)
    assert process.frames == []


def test_only_what_is_wanted_is_copied(make, process):
    tee = make(share=1, methods=["POST", "HEAD"], paths=["/v1/", "/exact"])
    for method, target in [("GET", "/v1/x"), ("POST", "/v2/x"), ("POST", "/x/v1/x"), ("PUT", "/exact")]:
        whole(tee, request(method, target))
    upgrade = "connection: upgrade\r\nupgrade: websocket\r\n"
    whole(make(share=1), request(headers=upgrade))
    whole(tee, request("POST", "/v1/x"), stable=Route("chat-2", 2, "unix:/candidate"))
    assert process.frames == []
    for method, target in [("POST", "/v1/x?a=b"), ("HEAD", "/exact"), ("POST", "/exact?x=/y")]:
        whole(tee, request(method, target))
    assert [frame.meta["path"] for frame in process.of("copy")] == ["/v1/x", "/exact", "/exact"]


def test_methods_that_may_change_something_are_noted_when_they_are_copied(make):
    tee = make(share=1, methods=["GET", "POST", "DELETE"])
    whole(tee)
    assert tee.with_effects == set()
    whole(tee, request("DELETE"))
    assert tee.with_effects == {b"DELETE"}


def test_a_body_in_chunks_becomes_one_of_known_length(make, process):
    tee = make(share=1)
    head = request("POST", headers="transfer-encoding: chunked\r\nx-swapd-shadow: 0\r\n")
    whole(tee, head, asked=[b"ab", b"", b"cd"], pieces=[b"o", b"k"])
    [frame] = process.frames
    assert (frame.body, frame.answer) == (b"abcd", b"ok")
    assert b"content-length: 4\r\n" in frame.head
    assert b"chunked" not in frame.head
    assert frame.head.count(b"x-swapd-shadow: ") == frame.head.count(b"x-swapd-shadow: 1\r\n") == 1
    assert frame.head.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("head", "told", "asked", "pieces"),
    [
        (request("POST", body=b"x" * 101), None, [], [b"ok"]),
        (request("POST", headers="transfer-encoding: chunked\r\n"), None, [b"x" * 60, b"x" * 60], [b"ok"]),
        (request(), answer("content-length: 101"), [], [b""]),
        (request(), answer("transfer-encoding: chunked"), [], [b"x" * 60, b"x" * 60]),
        (request(), answer("x: y"), [], [b"x"] * 101),
    ],
)
def test_large_bodies_are_not_copied(make, process, head, told, asked, pieces):
    tee = make(share=1, max_body=100)
    whole(tee, head, told, pieces, asked)
    assert process.of("copy") == []
    assert tee.dropped == {"large": 1}
    assert tee.collected == 0


def test_what_the_stable_does_not_answer_well_is_not_copied(make, process):
    tee = make(share=1)
    whole(tee, told=answer(status="503 Service Unavailable"))
    early = tee.begin(request("POST", body=b"x" * 100), Via("", False), STABLE)
    early.answered(answer(), [b"ok"])
    early.end(sent=False)
    tee.begin(request(), Via("", False), STABLE).give_up("stable_failed")
    assert process.frames == []
    assert tee.dropped == {"stable_failed": 3}
    assert tee.collected == 0


def test_what_is_collected_at_once_is_bounded(make, monkeypatch):
    monkeypatch.setattr(tee_module, "MAX_COLLECTED", 100_000)
    tee = make(share=1)
    copies = [tee.begin(request(), Via("", False), STABLE) for _ in range(50)]
    assert 0 < tee.collected <= 100_000 + tee_module.COPY_COST
    assert tee.dropped["memory"] >= 25
    for copy in copies:
        copy.answered(answer("transfer-encoding: chunked"), [b"x"] * 1000)  # a byte a piece costs more than a byte
        assert tee.collected <= 100_000 + 1000 * 70
        copy.end(sent=True)
    assert tee.collected == 0


def test_what_the_process_does_not_take_is_counted(make, process):
    process.refuses = "queue"
    tee = make(share=1, methods=["POST"])
    whole(tee, request("POST"))
    assert tee.dropped == {"queue": 1}
    assert tee.with_effects == set()
    assert tee.collected == 0


def test_whatever_happens_to_requests_nothing_stays_collected(make, process):
    rng = random.Random(5)
    tee = make(share=1, max_body=2000, methods=["GET", "POST"])
    live = []
    for _ in range(3000):
        tee.share = rng.choice([1.0, 0.5])
        process.refuses = rng.choice(["", "queue"])
        if rng.random() < 0.4 or not live:
            live.append(tee.begin(request("POST", headers="transfer-encoding: chunked\r\n"), Via("", False), STABLE))
            continue
        copy = rng.choice(live)
        kind = rng.randrange(5)
        if kind == 0:
            copy.asked([b"x" * rng.randrange(1500)])
        elif kind == 1:
            copy.answered(answer("transfer-encoding: chunked"), [b"y" * rng.randrange(1500)])
        elif kind == 2:
            copy.answered(None, [b"y" * rng.randrange(1500)])
        else:
            live.remove(copy)
            copy.end(sent=rng.random() < 0.9) if kind == 3 else copy.give_up("stable_failed")
    for copy in live:
        copy.give_up("")
    assert tee.collected == 0
    assert process.of("copy")


BAD = [
    {"worker": ""},
    {"address": "http://x"},
    {"revision": "1"},
    {"uid": True},
    {"uid": -1},
    {"reuse": 1},
    {"share": 1.1},
    {"share": -0.1},
    {"share": float("nan")},
    {"share": "20%"},
    {"methods": "GET"},
    {"methods": ["GÉT"]},
    {"paths": [1]},
    {"max_body": 1 << 30},
    {"max_body": 1.5},
    {"concurrency": 0},
    {"concurrency": 1000},
    {"deadline_s": 0},
    {"noise": 2},
    {"keep": -1},
    {"redact": "/a"},
    {"compare": {"how": "guess"}},
    {"compare": []},
]


@pytest.mark.parametrize("wrong", BAD, ids=str)
def test_a_bad_setting_is_told(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)) + r"|http://|compare|redact"):
        read_shadow({**CANDIDATE, **wrong})
