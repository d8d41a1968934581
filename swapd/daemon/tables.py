"""A gate's table as the verb `point` takes it: from an operation, whom it names, and how a swap is proved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from swapd.core.config import ServiceConfig
from swapd.core.delivery import Delivery, Shadow, Split
from swapd.core.model import Op

MIN_KEEP_S: Final = 60.0  # a session that has been silent for longer than this, or the soak, begins anew


def table(
    op: Op,
    main: Mapping[str, Any] | None,
    other: Mapping[str, Any] | None,
    delivery: Delivery | None,
    service: ServiceConfig,
) -> dict[str, Any]:
    """`main` and `other` are routes; None: nobody, or one that has ended since, which is told by itself."""
    params: dict[str, Any] = {"epoch": op.epoch, "hold": main is None and not op.turn_away, "routes": []}
    if main is None:
        return params
    params["routes"] = [dict(main)]
    if service.session_key is not None:  # also where nobody shares: who has come here is known when somebody does
        params["session_key"] = service.session_key
        if op.split is not None and op.split.sessions:  # in stages a growing share takes those that were here before
            params["keep_sessions_s"] = max(MIN_KEEP_S, service.soak_s)
    if op.split is None or delivery is None:
        return params
    params["label"] = op.split.label
    if other is None:
        return params
    if op.split.shadow:
        return params | {"shadow": _shadow(delivery.shadow or Shadow(), other)}
    return params | {"routes": _shares(op.split, main, other, delivery), "split": True}


def _shares(
    split: Split, main: Mapping[str, Any], other: Mapping[str, Any], delivery: Delivery
) -> list[dict[str, Any]]:
    routes = [{**main, "weight": 100.0 - split.percent}, {**other, "weight": split.percent}]
    if delivery.match is not None and not split.sessions:
        kind, name, value = delivery.match
        routes[1]["match"] = [{"kind": kind, "name": name, "value": value}]
    if split.sessions:
        routes.reverse()  # the first is the old revision's, which keeps its sessions and gets no new ones
    return routes


def _shadow(shadow: Shadow, candidate: Mapping[str, Any]) -> dict[str, Any]:
    compare: dict[str, Any] = {
        **{"how": shadow.compare, "ignore": list(shadow.ignore), "pointer": shadow.pointer or ""},
        **{"rtol": shadow.rtol, "atol": shadow.atol, "threshold": shadow.similar},
    }
    return {
        **{key: candidate[key] for key in ("worker", "revision", "address", "uid", "reuse")},
        **{"share": shadow.share / 100, "noise": shadow.noise / 100},
        **{"methods": list(shadow.methods), "paths": list(shadow.paths), "redact": list(shadow.redact)},
        **{"max_body": shadow.max_body_bytes, "concurrency": shadow.concurrency, "keep": shadow.keep},
        "compare": compare,
    }
