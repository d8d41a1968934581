"""In the gate: which requests are copied, and what of them is kept until their answer is whole. Nothing waits here.

A copy is collected by reference beside the relay's own work, and sent to the shadow's process when the stable's answer
has ended: a request that the stable did not answer is nobody's measure. Which one is decided by error diffusion, not by
chance, so that a fifth of a hundred requests is twenty. Of the requests that a throttled share leaves out, how long
they took is told all the same: the throttle learns from it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from swapd.front.relay.heads import AnswerHead, RequestHead, Via, build_request
from swapd.front.relay.routing import Route
from swapd.front.shadow.frames import pieces_of
from swapd.front.shadow.settings import SAFE, Shadow

MAX_COLLECTED: Final = 32 * 1024 * 1024  # bytes of all requests and answers that are not whole yet
PIECE_COST: Final = 64  # of a bytes object, beside its content
COPY_COST: Final = 4096  # of a copy's own objects
MARK: Final = b"x-swapd-shadow"


class Tee:
    """`send`: takes a frame's pieces and their size, and says why not, or nothing."""

    def __init__(self, shadow: Shadow, send: Callable[[list[bytes], int], str]) -> None:
        self.shadow = shadow
        self.share = shadow.share  # as throttled
        self.dropped: Counter[str] = Counter()
        self.with_effects: set[bytes] = set()  # methods of copies that may change something
        self.collected = 0  # bytes
        self._send = send
        self._sampled = self._copied = 0.5  # not 0: ten times a tenth is less than one

    def begin(self, head: RequestHead, via: Via, stable: Route) -> Copy | None:
        """A request is on its way to the stable. None: nothing of it is wanted."""
        shadow = self.shadow
        if head.upgrade or stable.worker == shadow.worker or not shadow.wants(head.method, head.target):
            return None
        self._sampled += shadow.share
        if self._sampled < 1.0:
            return None
        self._sampled -= 1.0
        copy = Copy(self, head, via, stable)
        self._copied += self.share / shadow.share
        if self._copied < 1.0:
            copy.give_up("")
        else:
            self._copied -= 1.0
            self.collect(copy, COPY_COST, max(head.length, 0))
        return copy

    def collect(self, copy: Copy, size: int, expected: int) -> None:
        """More of it has come. `expected`: bytes of the body in question, as far as it is known."""
        copy.cost += size
        self.collected += size
        if expected > self.shadow.max_body:
            copy.give_up("large")
        elif self.collected > MAX_COLLECTED:
            copy.give_up("memory")

    def release(self, copy: Copy) -> None:
        self.collected -= copy.cost
        copy.cost = 0

    def send(self, copy: Copy, pieces: list[bytes]) -> None:
        why = self._send(pieces, sum(map(len, pieces)))
        if why and copy.collecting:
            self.dropped[why] += 1
        elif copy.collecting and copy.head.method not in SAFE:
            self.with_effects.add(copy.head.method)


class Copy:
    """One request, and its answer by the stable."""

    __slots__ = (
        *("_answer", "_answer_bytes", "_answer_head", "_began", "_body", "_body_bytes", "_first", "_stable", "_tee"),
        *("_via", "collecting", "cost", "head"),
    )

    def __init__(self, tee: Tee, head: RequestHead, via: Via, stable: Route) -> None:
        self.head = head
        self.collecting = True  # else it is only watched
        self.cost = 0  # bytes
        self._tee = tee
        self._via = via
        self._stable = stable
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._answer: list[bytes] = []
        self._answer_bytes = 0
        self._answer_head: AnswerHead | None = None
        self._began = time.monotonic()
        self._first = 0.0

    def asked(self, pieces: list[bytes]) -> None:
        """More of the request. How long the stable takes counts from its end."""
        self._began = time.monotonic()
        if self.collecting:
            self._body += pieces
            self._body_bytes += (size := sum(map(len, pieces)))
            self._tee.collect(self, size + PIECE_COST * len(pieces), self._body_bytes)

    def answered(self, head: AnswerHead | None, pieces: list[bytes]) -> None:
        """More of the answer."""
        if head is not None:
            self._first = time.monotonic()
            self._answer_head = head
        if self.collecting and (pieces or head is not None):
            self._answer += pieces
            self._answer_bytes += (size := sum(map(len, pieces)))
            expected = max(self._answer_bytes, head.length if head is not None else 0)
            self._tee.collect(self, size + PIECE_COST * len(pieces), expected)

    def end(self, *, sent: bool) -> None:
        """The answer is whole. `sent`: the request was, too."""
        head = self._answer_head
        if head is None or head.status >= 500 or not sent:
            self.give_up("stable_failed")
        elif not self.collecting:
            times = {"began": self._began, "ended": time.monotonic()}
            self._tee.send(self, pieces_of({"kind": "watched", **times}, b"", (), ()))
        else:
            self._tee.send(self, pieces_of(self._meta(head), self._request(), self._body, self._answer))
        self._tee.release(self)

    def give_up(self, why: str) -> None:
        """It is not sent. `why`: as it is counted; empty: it is not. It may still be watched to its end."""
        if self.collecting:
            self.collecting = False
            self._body, self._answer = [], []
            self._tee.release(self)
            if why:
                self._tee.dropped[why] += 1

    def _meta(self, answer: AnswerHead) -> dict[str, object]:
        named = dict(answer.headers)
        return {
            "kind": "copy",
            "began": self._began,
            "first": self._first,
            "ended": time.monotonic(),
            "id": self.head.request_id.decode("latin1"),
            "method": self.head.method.decode("latin1"),
            "path": self.head.target.partition(b"?")[0][:1024].decode("latin1"),
            "stable": self._stable.address,
            "uid": self._stable.uid,
            "reuse": self._stable.reuse,
            "status": answer.status,
            "coding": named.get(b"content-encoding", b"").decode("latin1"),
            "event_stream": answer.event_stream,
        }

    def _request(self) -> bytes:
        """Its head, for a server that gets the whole body at once."""
        headers = [header for header in self.head.headers if header[0] not in (MARK, b"expect")]
        headers.append((MARK, b"1"))
        return build_request(replace(self.head, headers=headers, length=self._body_bytes), self._via)
