"""What a gate has measured of one revision since a table began: counts, and latencies in logarithmic buckets.

Duty: take one request after the other, cheaply, and be merged, sent and read as JSON. Used by the gate, the shadow's
process and the judge. Standard library only: this module also runs in a model's interpreter.
May not know: what is judged of it (`verdict`).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any, Final

# A bucket is 2 % wide, so that its middle is 1 % off at most: less than two runs of the same model differ.
RATIO: Final = 1.02
_LOWEST: Final = 1e-5
MAX_BUCKET: Final = 1100  # 28,000: seconds of a request, or tokens a second, that is already more than anybody measures
_BOUNDS: Final = [
    _LOWEST * math.pow(RATIO, bucket) for bucket in range(1, MAX_BUCKET + 1)
]  # a gate looks up each request
# A window is kept in slices of equal numbers of requests, so that what begins late can be seen. When there are so many,
# each two become one.
MAX_SLICES: Final = 16
_FIRST_SPAN: Final = 16
_STATUS_CLASSES: Final = ("1", "2", "3", "4", "5")


def bucket_of(value: float) -> int:
    """Values up to 10 microseconds (or 1e-5 of whatever it is) are all in bucket 0."""
    return bisect_right(_BOUNDS, value)


def middle_of(bucket: int) -> float:
    return _LOWEST * math.pow(RATIO, bucket + 0.5)


class Histogram:
    """How often each value was seen, to 1 %. Values are positive: seconds, or tokens a second."""

    __slots__ = ("_counts", "total")

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self._counts = dict(counts or {})
        self.total = sum(self._counts.values())

    def add(self, value: float) -> None:
        bucket = bucket_of(value)
        self._counts[bucket] = self._counts.get(bucket, 0) + 1
        self.total += 1

    def merge(self, other: Histogram) -> None:
        self.merge_counts(other._counts)

    def merge_counts(self, counts: Mapping[int, int]) -> None:
        """Of buckets."""
        for bucket, count in counts.items():
            self._counts[bucket] = self._counts.get(bucket, 0) + count
            self.total += count

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(bucket, count), in rising order of values."""
        return iter(sorted(self._counts.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Histogram) and self._counts == other._counts

    __hash__ = None  # type: ignore[assignment]  # it grows

    def quantile(self, q: float) -> float | None:
        """The nearest-rank quantile, 0 < q <= 1. None where nothing was seen."""
        return self.at_rank(math.ceil(q * self.total)) if self.total else None

    def at_rank(self, rank: int) -> float:
        """The value of so many in rising order, counted from 1 (the first or the last for a rank outside). Raises
        ValueError where nothing was seen."""
        if not self.total:
            raise ValueError("an empty histogram has no values")
        seen = 0
        for bucket, count in self:
            seen += count
            if seen >= rank:
                return middle_of(bucket)
        return middle_of(max(self._counts))

    def above(self, value: float) -> int:
        """How many were larger, and in another bucket."""
        limit = bucket_of(value)
        return sum(count for bucket, count in self._counts.items() if bucket > limit)

    def to_json(self) -> dict[str, int]:
        return {str(bucket): count for bucket, count in self}

    def to_dense(self) -> list[int]:
        """The lowest bucket, then the counts of it and all above it: a third of the length of `to_json` as a rule."""
        if not self._counts:
            return []
        lowest, highest = min(self._counts), max(self._counts)
        return [lowest, *(self._counts.get(bucket, 0) for bucket in range(lowest, highest + 1))]

    @classmethod
    def from_json(cls, value: object) -> Histogram:
        """Of either form. Raises ValueError where it is none."""
        if isinstance(value, list):
            lowest, *dense = (_count(number, "a number of a histogram") for number in value or [0])
            if lowest + len(dense) > MAX_BUCKET + 1:
                raise ValueError(f"a histogram has no bucket above {MAX_BUCKET}")
            return cls({bucket: count for bucket, count in enumerate(dense, lowest) if count})
        if not isinstance(value, Mapping):
            raise ValueError("a histogram is an object of counts by bucket")
        counts: dict[int, int] = {}
        for key, count in value.items():
            if not (isinstance(key, str) and key.isascii() and key.isdigit() and int(key) <= MAX_BUCKET):
                raise ValueError(f"a histogram has no bucket {key!r:.20}")
            counts[int(key)] = _count(count, "a bucket of a histogram")
        return cls(counts)


class Slice:
    """A part of a window: so many requests, of which so many failed, and how long the others took."""

    __slots__ = ("failed", "latency", "requests")

    def __init__(self, requests: int = 0, failed: int = 0, latency: Histogram | None = None) -> None:
        self.requests = requests
        self.failed = failed
        self.latency = latency or Histogram()

    def merge(self, other: Slice) -> None:
        self.requests += other.requests
        self.failed += other.failed
        self.latency.merge(other.latency)

    def to_json(self) -> dict[str, Any]:
        return {"requests": self.requests, "failed": self.failed, "latency": self.latency.to_dense()}

    @classmethod
    def from_json(cls, value: object) -> Slice:
        """Raises ValueError where it is none."""
        if not isinstance(value, Mapping):
            raise ValueError("a slice of a window is an object")
        requests, failed = (_count(value.get(key, 0), f"a window's {key}") for key in ("requests", "failed"))
        latency = Histogram.from_json(value.get("latency", {}))
        if failed > requests or latency.total > requests:
            raise ValueError("a slice of a window has more failures or latencies than requests")
        return cls(requests, failed, latency)


class Window:
    """All requests of one revision since a table began."""

    __slots__ = (
        "_span", "consecutive_failed", "first_byte", "longest_failed", "slices", "statuses", "streamed_bytes",
        "tokens_per_s",
    )  # fmt: skip

    def __init__(self) -> None:
        self.slices = [Slice()]  # in order of time, all of `_span` requests but the last
        self.statuses: dict[str, int] = {}  # by their first digit; a request without an answer has none
        self.first_byte = Histogram()
        self.tokens_per_s = Histogram()
        self.streamed_bytes = 0
        self.consecutive_failed = 0  # at present
        self.longest_failed = 0  # the most that it has been
        self._span = _FIRST_SPAN

    def add(
        self,
        seconds: float,
        *,
        status: int = 200,
        failed: bool = False,
        first_byte: float | None = None,
        tokens_per_s: float | None = None,
        streamed_bytes: int = 0,
    ) -> None:
        """One request that is over. `seconds` until the end of its answer, without the time that it was held.

        `failed`: the engine answered 5xx, or cut the answer, or gave none (status 0). Times of failures are not kept:
        an engine that fails at once would look fast.
        """
        now = self.slices[-1]
        if now.requests >= self._span:
            now = self._next_slice()
        now.requests += 1
        if status:
            kind = str(status // 100)
            self.statuses[kind] = self.statuses.get(kind, 0) + 1
        self.streamed_bytes += streamed_bytes
        if failed:
            now.failed += 1
            self.consecutive_failed += 1
            self.longest_failed = max(self.longest_failed, self.consecutive_failed)
            return
        self.consecutive_failed = 0
        now.latency.add(seconds)
        if first_byte is not None:
            self.first_byte.add(first_byte)
        if tokens_per_s is not None:
            self.tokens_per_s.add(tokens_per_s)

    def add_whole(self, seconds: Sequence[float]) -> None:
        """Many at once, each answered well (2xx) and in one piece, so that its first byte came with its last: as `add`,
        at a quarter of its cost."""
        buckets = list(map(bisect_right, repeat(_BOUNDS), seconds))  # `bucket_of`, without a call of it for each
        at = 0
        while at < len(buckets):
            now = self.slices[-1]
            if now.requests >= self._span:
                now = self._next_slice()
            part = buckets[at : at + self._span - now.requests]
            now.requests += len(part)
            counts = Counter(part)
            now.latency.merge_counts(counts)
            self.first_byte.merge_counts(counts)
            at += len(part)
        if buckets:
            self.statuses["2"] = self.statuses.get("2", 0) + len(buckets)
            self.consecutive_failed = 0

    def _next_slice(self) -> Slice:
        if len(self.slices) == MAX_SLICES:
            for first, second in zip(self.slices[::2], self.slices[1::2], strict=True):
                first.merge(second)
            self.slices = self.slices[::2]
            self._span *= 2
        self.slices.append(Slice())
        return self.slices[-1]

    @property
    def requests(self) -> int:
        return sum(part.requests for part in self.slices)

    @property
    def failed(self) -> int:
        return sum(part.failed for part in self.slices)

    @property
    def latency(self) -> Histogram:
        """Of all that did not fail."""
        return merged(part.latency for part in self.slices)

    def to_json(self) -> dict[str, Any]:
        """With `requests`, `failed` and `latency` of the whole, for readers that need no slices."""
        return {
            "requests": self.requests,
            "failed": self.failed,
            "statuses": dict(self.statuses),
            "latency": self.latency.to_json(),
            "first_byte": self.first_byte.to_json(),
            "tokens_per_s": self.tokens_per_s.to_json(),
            "streamed_bytes": self.streamed_bytes,
            "consecutive_failed": self.consecutive_failed,
            "longest_failed": self.longest_failed,
            "slices": [part.to_json() for part in self.slices],
        }

    @classmethod
    def from_json(cls, value: object) -> Window:
        """As `to_json` wrote it; without `slices` the whole is one. To be read, not to be added to. Raises ValueError
        where it is none."""
        if not isinstance(value, Mapping):
            raise ValueError("a window is an object")
        slices = value.get("slices") or [value]
        statuses = value.get("statuses", {})
        if not isinstance(slices, list) or len(slices) > MAX_SLICES or not isinstance(statuses, Mapping):
            raise ValueError(f"a window has up to {MAX_SLICES} slices, and an object of statuses")
        window = cls()
        window.slices = [Slice.from_json(part) for part in slices]
        for kind, count in statuses.items():
            if kind not in _STATUS_CLASSES:
                raise ValueError(f"a window has no statuses {kind!r:.20}")
            window.statuses[kind] = _count(count, "a window's statuses")
        window.first_byte = Histogram.from_json(value.get("first_byte", {}))
        window.tokens_per_s = Histogram.from_json(value.get("tokens_per_s", {}))
        for key in ("streamed_bytes", "consecutive_failed", "longest_failed"):
            setattr(window, key, _count(value.get(key, 0), f"a window's {key}"))
        return window


def merged(histograms: Iterable[Histogram]) -> Histogram:
    whole = Histogram()
    for histogram in histograms:
        whole.merge(histogram)
    return whole


def _count(value: object, what: str) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{what} is a number from 0, not {value!r:.20}")
    return value
