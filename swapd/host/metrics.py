"""Metrics for Prometheus: in its text format, over HTTP.

Duty: to write values, which are handed in, with prometheus-client, whose sole importer this is, and to serve what was
written: GET /metrics and nothing else, to a few at a time, each with a deadline. There is no registry of the process's
own: what is told is what was handed in. May not know: what a metric means.
Source: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from swapd.core import metrics as known
from swapd.core.metrics import MetricKind, Spread, Values
from swapd.host.deadlines import within

PATH: Final = "/metrics"
MAX_CONNECTIONS: Final = 8
REQUEST_S: Final = 5.0  # for a request's head to come
ANSWER_S: Final = 10.0  # Prometheus' own scrape_timeout by default
MAX_HEAD_BYTES: Final = 16 * 1024
_TEXT: Final = "text/plain; charset=utf-8"


def render(values: Values) -> bytes:
    """In the text format, version 0.0.4. Some tens of milliseconds for thousands of series: not for a loop's thread."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Values(values))
    return bytes(generate_latest(registry))


class _Values(Collector):
    def __init__(self, values: Values) -> None:
        self._values = values

    def collect(self) -> Iterator[Metric]:
        for metric in known.METRICS:
            if series := self._values.found.get(metric.name):
                yield _family(metric, series)


def _family(metric: known.Metric, series: dict[tuple[str, ...], known.Value]) -> Metric:
    if metric.kind is MetricKind.HISTOGRAM:
        histogram = HistogramMetricFamily(metric.name, metric.text, labels=metric.labels)
        for labels, value in series.items():
            assert isinstance(value, Spread)
            histogram.add_metric(labels, _buckets(metric.bounds, value), value.total)
        return histogram
    of = CounterMetricFamily if metric.kind is MetricKind.COUNTER else GaugeMetricFamily
    family = of(metric.name, metric.text, labels=metric.labels)
    for labels, value in series.items():
        assert isinstance(value, float)
        family.add_metric(labels, value)
    return family


def _buckets(bounds: tuple[float, ...], value: Spread) -> list[tuple[str, float]]:
    """Each with all that is in those before it."""
    buckets, so_far = [], 0
    for bound, count in zip((*map(str, bounds), "+Inf"), value.counts, strict=True):
        so_far += count
        buckets.append((bound, float(so_far)))
    return buckets


class MetricsServer:
    """Serves what `read` gives, on a listening socket that becomes its own."""

    def __init__(self, sock: socket.socket, read: Callable[[], Awaitable[bytes]]) -> None:
        self._sock = sock
        self._read = read
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        begin = asyncio.start_unix_server if self._sock.family == socket.AF_UNIX else asyncio.start_server
        self._server = await begin(self._accepted, sock=self._sock, limit=MAX_HEAD_BYTES)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in tuple(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        self._sock.close()

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, and the end. Whoever asks wrongly, slowly or leaves is nobody's trouble but its own."""
        try:
            with contextlib.suppress(OSError, EOFError, asyncio.LimitOverrunError, asyncio.TimeoutError):
                head = await within(REQUEST_S, reader.readuntil(b"\r\n\r\n"))
                writer.write(await within(ANSWER_S, self._answer(head)))
                await within(ANSWER_S, writer.drain())
                writer.write_eof()
                await within(ANSWER_S, reader.read())  # until it has closed: an earlier close might cost it the answer
        finally:
            writer.transport.abort()

    async def _answer(self, head: bytes) -> bytes:
        words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _response("400 Bad Request", b"This is no HTTP/1.1 request.\n")
        method, path = words[0], words[1].partition("?")[0]
        if path != PATH:
            return _response("404 Not Found", f"There is only {PATH} here.\n".encode())
        if method not in ("GET", "HEAD"):
            return _response("405 Method Not Allowed", b"Only GET is answered.\n", "Allow: GET, HEAD\r\n")
        answer = _response("200 OK", await self._read(), content_type=CONTENT_TYPE_PLAIN_0_0_4)
        return answer if method == "GET" else answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"


def _response(status: str, body: bytes, more: str = "", content_type: str = _TEXT) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}{more}Connection: close\r\n\r\n".encode("latin-1") + body
