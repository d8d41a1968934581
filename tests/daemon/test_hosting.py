"""Whom a worker runs as, and what it may touch, by the host that it lives on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.config_tables import parsed

from swapd.core.errors import NOT_SUPPORTED, SwapdError
from swapd.core.launch import NVIDIA
from swapd.core.model import DeviceKind, DeviceReading, Kind
from swapd.daemon.hosting import confine, share, user_of
from swapd.daemon.spec import MPS_LIMIT, environment_of, gpu_cap
from swapd.host.processes import Supervisor
from swapd.host.units import Units


def model(**keys):
    tables = {
        "models": {"a": {"app": "m:app", "directory": "/srv/models", **keys}},
        "services": {"chat": {"listen": "127.0.0.1:8000", "model": "a"}},
    }
    return parsed(tables).models["a"]


def reading(kind):
    return DeviceReading("d", kind, 0, None, None, ())


def confined(user="swapd", on=DeviceKind.HOST, **keys):
    return confine(user, model(**keys), [reading(on)], sys.executable, "/run/swapd/ports")


def test_under_systemd_a_worker_has_its_models_user_or_swapds():
    units = Units()
    assert user_of(units, model(user="llm"), Kind.DIRECT) == "llm"
    assert user_of(units, model(), Kind.DIRECT) == "swapd"
    assert user_of(units, None, Kind.GATE) == "swapd"


def test_elsewhere_it_runs_as_the_daemon_and_one_that_cannot_change_is_refused():
    plain = Supervisor()
    assert user_of(plain, model(), Kind.DIRECT) == ""
    assert user_of(plain, model(user="llm"), Kind.ENGINE) == ""  # its server changes to it
    with pytest.raises(SwapdError, match='user = "llm" of model "a" needs a swapd that systemd has started') as refused:
        user_of(plain, model(user="llm"), Kind.DIRECT)
    assert refused.value.code == NOT_SUPPORTED


def test_what_the_model_says_is_what_it_may():
    limits = confined(read_paths=["/srv/r"], write_paths=["/srv/w"], memory_max="2GiB", cpu_weight=50)
    assert limits.read_paths == ("/srv/r",)
    assert limits.write_paths == ("/srv/w", "/run/swapd/ports")
    assert (limits.memory_max_bytes, limits.cpu_weight) == (2 << 30, 10)  # a part of it until it serves
    assert limits.cache_dir == "/var/cache/swapd/swapd"


def test_an_interpreter_is_seen_with_its_installation(tmp_path):
    needed = confined().needed_paths
    assert str(Path(sys.prefix)) in needed
    assert str(Path(sys.executable).resolve().parent.parent) in needed
    assert "/srv/models" not in needed, "what is not there cannot be bound"


def test_gpus_are_for_those_that_are_placed_on_one():
    assert confined().devices == ()
    assert confined(on=DeviceKind.NVML).devices == (NVIDIA,)


def test_a_gate_may_do_next_to_nothing_and_reaches_workers_of_other_users():
    gate = confine("swapd", None, (), sys.executable, "/run/swapd/ports")
    assert (gate.group, gate.write_paths, gate.cache_dir, gate.devices) == ("swapd-workers", (), "", ())
    assert confined(user="llm").group == ""


def test_ports_are_shared_by_workers_of_different_users(tmp_path):
    share(str(tmp_path / "ports"))
    assert (tmp_path / "ports").stat().st_mode & 0o7777 == 0o1777


def test_on_the_hosts_memory_a_worker_may_take_no_more_than_its_share_of_the_device():
    def limit(on=DeviceKind.HOST, cap=3 << 30, **keys):
        return confine("swapd", model(**keys), [reading(on)], sys.executable, "/run/x", cap).memory_max_bytes

    assert limit() == 3 << 30
    assert limit(memory_max="2GiB") == 2 << 30
    assert limit(memory_max="4GiB") == 3 << 30
    assert limit(cap=None) is None
    assert limit(on=DeviceKind.NVML) is None, "its share is of the GPU"
    assert limit(on=DeviceKind.NVML, memory_max="4GiB") == 4 << 30


def test_on_a_gpu_it_is_told_to_an_mps_server_and_to_the_worker():
    gpu, host = [reading(DeviceKind.NVML)], [reading(DeviceKind.HOST)]
    assert environment_of(model(), gpu, None, cap_bytes=(3 << 30) - 1)[MPS_LIMIT] == "0=3072M"
    assert environment_of(model(env={MPS_LIMIT: "0=1G"}), gpu, None, cap_bytes=3 << 30)[MPS_LIMIT] == "0=1G"
    assert environment_of(model(), gpu * 2, None, cap_bytes=1 << 30)[MPS_LIMIT] == "0=1024M,1=1024M"
    assert MPS_LIMIT not in environment_of(model(), host, None, cap_bytes=3 << 30)
    assert MPS_LIMIT not in environment_of(model(), gpu, None)
    assert (gpu_cap(gpu, 5), gpu_cap(host, 5), gpu_cap((), 5), gpu_cap(gpu, None)) == (5, 0, 0, 0)
