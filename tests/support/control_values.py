"""Records as the daemon documents them, with the parts that a test cares about replaced."""

from __future__ import annotations

from typing import Any

GIB = 1 << 30
NOW = 1_800_000_000.0


def swap_record(swap_id: int = 42, phase: str = "Succeeded", **changes: Any) -> dict[str, Any]:
    record: dict[str, Any] = {
        "id": swap_id,
        "service": "chat",
        "from": {"revision": 41, "model": "a"},
        "to": {"revision": 42, "model": "b"},
        "strategy": "dual",
        "why": "b needs 6.0 GiB, 14.2 GiB are available on gpu0",
        "phase": phase,
        "reason": None,
        "error": None,
        "actor": "ana",
        "asked_reason": None,
        "created_at": NOW,
        "finished_at": None,
        "outage_ms": None,
        "cutover_ms": 0.84,
        "refused_requests": 0,
        "return_outage_ms": None,
        "return_cutover_ms": None,
        "cut_requests": 0,
        "soak_until": None,
        "kept": None,
        "steps": [
            {"name": "start", "status": "done", "started_at": NOW, "ms": 120.0, "detail": None},
            {"name": "load", "status": "done", "started_at": NOW, "ms": 1234.0, "detail": None},
        ],
        "peak_memory_bytes": {"gpu0": 6 * GIB},
    }
    return {**record, **changes}


def service(**changes: Any) -> dict[str, Any]:
    value: dict[str, Any] = {
        "name": "chat",
        "listen": ["127.0.0.1:8000"],
        "health": "Healthy",
        "model": "a",
        "revision": 41,
        "config_model": "a",
        "drift": None,
        "front": "direct",
        "holding": False,
        "swap": None,
        "soak": None,
        "rollback": "instant",
        "workers": ["chat-3"],
        "requests": 1234,
        "in_flight": 2,
        "problem": None,
    }
    return {**value, **changes}


def status(*services: dict[str, Any]) -> dict[str, Any]:
    daemon = {"version": "0.1.0", "pid": 4711, "uptime_s": 3600.0, "config": "/etc/swapd/swapd.toml", "epoch": 1}
    return {"daemon": daemon, "services": list(services or (service(),))}


def worker(**changes: Any) -> dict[str, Any]:
    value: dict[str, Any] = {
        "id": "chat-3",
        "service": "chat",
        "revision": 41,
        "model": "a",
        "role": "stable",
        "state": "Serving",
        "pid": 4712,
        "device": "gpu0",
        "devices": ["gpu0"],
        "reserved_bytes": 20 * GIB,
        "used_bytes": 19 * GIB,
        "uptime_s": 75.0,
        "in_flight": 2,
        "connections": 31,
        "version": "0.1.0",
    }
    return {**value, **changes}


def device(**changes: Any) -> dict[str, Any]:
    value: dict[str, Any] = {
        "name": "gpu0",
        "kind": "nvml",
        "uuid": "GPU-8f1c",
        "detail": "NVIDIA H200, driver 575.57",
        "total_bytes": 24 * GIB,
        "free_bytes": 4 * GIB,
        "reserved_bytes": 20 * GIB,
        "headroom_bytes": GIB // 2,
        "available_bytes": 7 * GIB // 2,
        "workers": [{"id": "chat-3", "reserved_bytes": 20 * GIB, "used_bytes": 19 * GIB}],
        "foreign": [{"pid": 99, "bytes": GIB, "name": "python3"}],
    }
    return {**value, **changes}


def plan(**changes: Any) -> dict[str, Any]:
    value: dict[str, Any] = {
        "service": "chat",
        "from": {"revision": 41, "model": "a"},
        "to": {"revision": 42, "model": "b"},
        "strategy": "in-place",
        "why": "dual impossible: a holds 20.0 of 24.0 GiB; b needs 6.0 GiB",
        "alternatives": [{"strategy": "dual", "possible": False, "why": "2.5 GiB short on gpu0"}],
        "need_bytes": 6 * GIB,
        "need_source": "declared",
        "need_detail": "device_memory = 6.0 GiB",
        "last_forecast": {"planned_bytes": 6 << 30, "source": "declared", "seen_bytes": 5 << 30},
        "device": "gpu0",
        "devices": ["gpu0"],
        "memory": [
            device(workers=[{"id": "chat-3", "model": "a", "reserved_bytes": 20 * GIB, "used_bytes": 19 * GIB}]),
            device(name="gpu1", workers=[], foreign=[], free_bytes=5 * GIB, available_bytes=9 * GIB // 2),
        ],
        "available_bytes": 7 * GIB // 2,
        "available_then_bytes": 45 * GIB // 2,
        "available_after_bytes": 33 * GIB // 2,
        "expected_outage_s": 12.5,
        "outage_terms": {"drain_s": 2.0, "release_s": 1.0, "load_s": 9.2, "warm_s": 0.3},
        "probes": 1,
        "open_streams": 3,
        "longest_stream_s": 40.0,
        "hold_timeout_s": 120.0,
        "rollback": "cold",
        "rollback_s": 11.0,
        "rollback_later": "cold",
        "rollback_later_s": 11.0,
        "soak_s": 600.0,
        "would_change": ["2.5 GiB more free on gpu0 makes it dual"],
    }
    return {**value, **changes}
