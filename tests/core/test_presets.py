"""What swapd adds to a server's own command, and nothing that is there already."""

from dataclasses import replace

import pytest

from swapd.core.config import ModelConfig, ReadyConfig
from swapd.core.footprint import WeightsSummary
from swapd.core.gguf import Attention
from swapd.core.model import DeviceKind, DeviceReading
from swapd.core.presets import (
    blocked_paths,
    cache_need,
    has_front,
    launch_of,
    memory_share,
    ready_path,
    said_need,
    shown_flags,
    smallest_gpu_bytes,
    visible_devices,
)

GIB = 1 << 30
WEIGHTS = WeightsSummary(10, 1, attentions=(Attention(8192, 768, 768),))


def model(engine, *command, **settings):
    return ModelConfig(name="a", engine=engine, command=command, **settings)


def gpu(total_bytes=80 * GIB):
    return DeviceReading("gpu1", DeviceKind.NVML, 0, total_bytes, total_bytes, uuid="GPU-8f", index=1)


def added(*args, device_bytes=None, **settings):
    return " ".join(launch_of(model(*args, **settings), device_bytes).added)


def test_a_command_is_run_as_it_is_written():
    launch = launch_of(model("command", "srv", "--port", "{port}", served_names=("x",)), 80 * GIB)
    assert launch.argv == ("srv", "--port", "{port}")
    assert launch.added == ()
    assert (launch.stop_signal, launch.stop_timeout_s, launch.hooks, launch.environment) == ("SIGTERM", 10.0, {}, {})
    assert ready_path(model("command", "srv")) is None
    assert shown_flags(ModelConfig(name="a", app="m:app")) == ()
    assert has_front(ModelConfig(name="a", app="m:app"))
    assert not has_front(model("command"))


def test_a_stop_of_ones_own_comes_first():
    launch = launch_of(model("llama-server", stop_signal="SIGINT", stop_timeout_s=7.0))
    assert (launch.stop_signal, launch.stop_timeout_s) == ("SIGINT", 7.0)
    assert launch_of(model("llama-server")).stop_timeout_s == 3.0


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ((), "-m /w.gguf --host {socket} --alias chat,x"),
        (("/opt/llama-server", "-c", "4096"), "-m /w.gguf --host {socket} --alias chat,x"),
        (("llama-server", "-m", "/other.gguf"), "--host {socket} --alias chat,x"),
        (("llama-server", "--hf-repo=org/x"), "--host {socket} --alias chat,x"),
        (("llama-server", "--models-dir", "/m"), "--host {socket} --alias chat,x"),
        (("llama-server", "--host", "{socket}", "-a", "y"), "-m /w.gguf"),
        (("llama-server", "--port", "{port}"), "-m /w.gguf --alias chat,x"),
    ],
)
def test_a_llama_server_gets_what_its_command_lacks(command, flags):
    settings = {"weights": ("/w.gguf",), "served_names": ("chat", "x")}
    assert added("llama-server", *command, **settings) == flags
    launch = launch_of(model("llama-server", *command, **settings))
    assert launch.argv == (*(command or ("llama-server",)), *launch.added)
    assert ready_path(model("llama-server")) == "/health"
    assert ready_path(model("llama-server", ready=ReadyConfig(path="/v1/models"))) == "/v1/models"


@pytest.mark.parametrize(
    ("command", "argv"),
    [
        ((), "vllm serve /w --uds {socket} --served-model-name chat x --shutdown-timeout 5"),
        (("/v/vllm",), "/v/vllm serve /w --uds {socket} --served-model-name chat x --shutdown-timeout 5"),
        (
            ("vllm", "serve", "--dtype", "half"),
            "vllm serve /w --dtype half --uds {socket} --served-model-name chat x --shutdown-timeout 5",
        ),
        (
            ("vllm", "serve", "/other", "--served_model_name=y", "--uds={socket}", "--shutdown-timeout", "9"),
            "vllm serve /other --served_model_name=y --uds={socket} --shutdown-timeout 9",
        ),
        (
            ("python", "-m", "vllm.entrypoints.openai.api_server", "--port", "{port}"),
            "python -m vllm.entrypoints.openai.api_server --port {port} --model /w --host 127.0.0.1"
            " --served-model-name chat x --shutdown-timeout 5",
        ),
        (
            ("vllm", "serve", "--config", "/c.yaml"),
            "vllm serve --config /c.yaml --uds {socket} --served-model-name chat x --shutdown-timeout 5",
        ),
    ],
)
def test_a_vllm_gets_what_its_command_lacks(command, argv):
    launch = launch_of(model("vllm", *command, weights=("/w",), served_names=("chat", "x")))
    assert " ".join(launch.argv) == argv


def test_a_vllm_lies_beside_its_interpreter():
    assert launch_of(model("vllm", python="/srv/venv/bin/python3", weights=("/w",))).argv[0] == "/srv/venv/bin/vllm"


def test_a_vllm_sleeps_only_when_it_is_told_to_and_its_routes_are_closed_then():
    awake, asleep = model("vllm", weights=("/w",)), model("vllm", weights=("/w",), sleep=True)
    assert (launch_of(awake).hooks, launch_of(awake).environment, blocked_paths(awake)) == ({}, {}, ())
    launch = launch_of(asleep)
    assert "--enable-sleep-mode" in launch.argv
    assert launch.environment == {"VLLM_SERVER_DEV_MODE": "1"}
    assert launch.hooks == {"park": "/sleep?level=1", "wake": "/wake_up"}
    assert {"/sleep", "/wake_up", "/is_sleeping", "/collective_rpc", "/reset_prefix_cache"} <= {*blocked_paths(asleep)}
    behind = model("vllm", "vllm", "serve", "/w", "--root-path", "/llm/", sleep=True)
    assert {"/sleep", "/llm/sleep"} <= {*blocked_paths(behind)}


@pytest.mark.parametrize(
    ("command", "declared", "share", "need"),
    [
        ((), None, 0.9, 72 * GIB),
        ((), 20 * GIB, 0.25, 20 * GIB),
        ((), 6 * GIB, 0.075, 6 * GIB),
        ((), 7 * GIB, 0.087, 7 * GIB),  # 0.0875: never more than was planned
        ((), 96 * GIB, 1.0, 96 * GIB),
        (("vllm", "serve", "--gpu-memory-utilization", "0.5"), None, None, 40 * GIB),
        (("vllm", "serve", "--gpu_memory_utilization=0.5"), 20 * GIB, None, 20 * GIB),
        (("vllm", "serve", "--device-memory-utilization", "0.5"), None, None, 40 * GIB),
        (("vllm", "serve", "--gpu-memory-utilization", "half"), None, None, None),
        (("vllm", "serve", "--kv-cache-memory-bytes", "1073741824"), None, None, None),
    ],
)
def test_a_vllm_is_given_its_share_of_the_card_and_planned_with_it(command, declared, share, need):
    vllm = model("vllm", *command, device_memory_bytes=declared, weights=("/w",))
    assert memory_share(vllm, 80 * GIB) == share
    said = said_need(vllm, [gpu()])
    assert (said and said[0]) == need
    flags = [flag for flag in shown_flags(vllm, 80 * GIB) if "utilization" in flag]
    assert flags == ([] if share is None else [f"--gpu-memory-utilization {share:g}"])
    assert not [flag for flag in shown_flags(vllm) if "utilization" in flag]  # not on a GPU


def test_a_need_is_said_in_words():
    largest = (72 * GIB, "--gpu-memory-utilization 0.9 by default, of 80.0 GiB")
    assert said_need(model("vllm"), [gpu(24 * GIB), gpu(80 * GIB), gpu(None)]) == largest
    assert said_need(model("vllm", device_memory_bytes=GIB), [gpu()]) == (GIB, "device_memory = 1.0 GiB")
    assert said_need(model("vllm"), [gpu(None)]) is None
    assert said_need(model("vllm"), [replace(gpu(), kind=DeviceKind.HOST)]) is None
    assert said_need(model("llama-server"), [gpu()]) is None
    for said, need in (("4096", 4096), ("4G", 4 * GIB), ("1.5g", 1_500_000_000), ("much", 0)):
        served = model("vllm", "vllm", "serve", "/w", "--kv-cache-memory-bytes", said)
        assert cache_need(served, WEIGHTS, DeviceKind.NVML) == (need, "")
    assert cache_need(model("llama-server", "x", "--kv-cache-memory-bytes", "4096"), None, DeviceKind.NVML) == (0, "")


def test_the_cache_of_a_llama_server_comes_from_its_command_and_its_file():
    served = model("llama-server", "llama-server", "-m", "/w.gguf", "-c", "4096", "-ctk", "q8_0")
    assert cache_need(served, WEIGHTS, DeviceKind.NVML) == (4096 * 768 * (34 + 64) // 32, "4096 tokens of q8_0 and f16")
    unknown = WeightsSummary(10, 1, not_understood="its block_count is missing")
    assert cache_need(served, unknown, DeviceKind.NVML) == (0, "its KV cache is not known: its block_count is missing")
    assert cache_need(served, WeightsSummary(10, 1), DeviceKind.NVML) == (0, "")
    assert cache_need(model("command", "x", "-c", "4096"), WEIGHTS, DeviceKind.NVML) == (0, "")


def test_a_cache_that_is_kept_in_the_hosts_memory_is_not_the_gpus():
    served = model("llama-server", "llama-server", "-m", "/w.gguf", "-c", "4096", "-nkvo")
    assert cache_need(served, WEIGHTS, DeviceKind.NVML) == (0, "its KV cache is in the host's memory")
    assert cache_need(served, WEIGHTS, DeviceKind.HOST)[0] > 0


def test_a_gpu_is_shown_by_its_uuid_but_to_a_vllm_by_its_number():
    assert visible_devices(model("llama-server"), [gpu()]) == {"CUDA_VISIBLE_DEVICES": "GPU-8f"}
    assert visible_devices(model("vllm"), [gpu()]) == {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    part = replace(gpu(), uuid="MIG-3c", index=None)
    assert visible_devices(model("vllm"), [part]) == {"CUDA_VISIBLE_DEVICES": "MIG-3c"}
    assert visible_devices(model("vllm"), [replace(gpu(), kind=DeviceKind.HOST)]) == {}


def test_what_is_shown_has_a_flag_with_its_values_each():
    shown = shown_flags(model("vllm", "vllm", "serve", "/w", served_names=("chat", "x")), 80 * GIB)
    assert shown == (
        "--uds {socket}",
        "--served-model-name chat x",
        "--shutdown-timeout 5",
        "--gpu-memory-utilization 0.9",
    )


def test_several_gpus_are_shown_in_order_and_a_vllm_is_told_to_span_them():
    both = [gpu(), replace(gpu(), uuid="GPU-2a", index=0)]
    assert visible_devices(model("llama-server"), both) == {"CUDA_VISIBLE_DEVICES": "GPU-8f,GPU-2a"}
    assert visible_devices(model("vllm"), both)["CUDA_VISIBLE_DEVICES"] == "1,0"
    assert visible_devices(model("vllm"), [gpu(), replace(gpu(), uuid="GPU-2a", index=None)]) == {
        "CUDA_VISIBLE_DEVICES": "GPU-8f,GPU-2a"
    }, "numbers for all of them, or for none"
    spans = added("vllm", "vllm", "serve", "/w", gpus=2)
    assert "--tensor-parallel-size 2" in spans
    for own in ("--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-dp"):
        assert "--tensor-parallel-size" not in added("vllm", "vllm", "serve", "/w", own, "2", gpus=2)
    assert "--tensor-parallel-size" not in added("vllm", "vllm", "serve", "/w")
    assert smallest_gpu_bytes([gpu(), replace(gpu(), total_bytes=40 * GIB)]) == 40 * GIB
    assert smallest_gpu_bytes([replace(gpu(), kind=DeviceKind.HOST)]) is None
