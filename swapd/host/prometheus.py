"""One number from a Prometheus: an instant query over its HTTP API.

Source: https://prometheus.io/docs/prometheus/latest/querying/api/#instant-queries
"""

from __future__ import annotations

import asyncio
import http.client
import json
import math
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Final

from swapd.core.errors import NOT_READY, TIMEOUT, SwapdError
from swapd.host.deadlines import within

DEADLINE_S: Final = 5.0
MAX_ANSWER_BYTES: Final = 1 << 20


async def value_of(url: str, query: str, *, deadline_s: float = DEADLINE_S) -> float | None:
    """The value of the one series that the query answers with; None where there is none yet, or it is no number.

    Raises SwapdError: TIMEOUT; NOT_READY where nobody answers, the query is refused, or it has several answers.
    """
    loop = asyncio.get_running_loop()
    try:
        text = await within(deadline_s + 1.0, loop.run_in_executor(None, _ask, url, query, deadline_s))
    except asyncio.TimeoutError:
        raise SwapdError(TIMEOUT, f"{url} did not answer within {deadline_s:g} s") from None
    return _read(url, text)


def _ask(url: str, query: str, deadline_s: float) -> bytes:
    where = f"{url.rstrip('/')}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        try:
            answer = urllib.request.urlopen(where, timeout=deadline_s)  # http or https: `core.rules` sees to that
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            return bytes(answer.read(MAX_ANSWER_BYTES))
    except (OSError, ValueError, http.client.HTTPException) as error:  # the last: somebody else than a server of HTTP
        raise SwapdError(NOT_READY, f"{url} does not answer: {error}") from None


def _read(url: str, text: bytes) -> float | None:
    try:
        document: Any = json.loads(text)
        if document["status"] != "success":
            raise SwapdError(NOT_READY, f"{url} refuses the query: {str(document.get('error'))[:200]}")
        data = document["data"]
        found = [data["result"]] if data["resultType"] == "scalar" else [each["value"] for each in data["result"]]
        values = [float(value) for _, value in found]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise SwapdError(NOT_READY, f"{url} answers with something else than a Prometheus does") from None
    if len(values) > 1:
        text_of = f"{url}: the query has {len(values)} answers; write one that has one, such as sum(…)"
        raise SwapdError(NOT_READY, text_of)
    return values[0] if values and not math.isnan(values[0]) else None
