"""Clients of the official `openai` package that chat without a pause and never retry; every trouble is counted."""

from __future__ import annotations

import threading
import time

import openai
from support.daemon_host import Crowd

PROMPTS = ("Once upon a time", "Why?", "Tell me about the sea.")
TOKENS = 40
SAME_CHARACTERS = 8


def client_of(port):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=120)


def chat(client, prompt, *, stream, tokens=TOKENS):
    """One answer: (its revision, its text). Raises openai.OpenAIError for whatever is not a whole answer."""
    response = client.chat.completions.with_raw_response.create(
        model="chat",
        messages=[{"role": "user", "content": prompt}],
        max_tokens=tokens,
        temperature=0,
        stream=stream,
        extra_body={"ignore_eos": True, "cache_prompt": False},
    )
    revision = int(response.headers["x-swapd-revision"])
    if not stream:
        return revision, response.parse().choices[0].message.content
    text, finished = "", None
    for part in response.parse():
        if part.choices:
            text += part.choices[0].delta.content or ""
            finished = part.choices[0].finish_reason or finished
    assert finished == "length", f"a stream ended without its last part: {text[-80:]!r}"
    return revision, text


class Chatters(Crowd):
    """The crowd's `answers` hold, in the place of the model's name, the prompt and the text: (prompt, text)."""

    def __init__(self, port, *, streaming=4, whole=2, first_answers=10, pause_s=0.0):
        super().__init__(port, keep_alive=0, reconnecting=0, streaming=0, pause_s=pause_s, first_answers=first_answers)
        self._numbers = iter(range(streaming + whole))
        kinds = [self._chat_streaming] * streaming + [self._chat_whole] * whole
        self._threads = [threading.Thread(target=self._run, args=(kind,), daemon=True) for kind in kinds]

    def check_texts(self, models):
        """`models` names the model of each revision: to each prompt it always says the same, and no other says that.

        That is, it always begins with the same: later on, sums that depend on who is in a batch may tip a choice."""
        texts = {}
        for _, _, revision, (prompt, text) in self.answers:
            texts.setdefault(prompt, {}).setdefault(models[revision], set()).add(text[:SAME_CHARACTERS])
        assert {revision for _, _, revision, _ in self.answers} == set(models)
        for prompt, of_models in texts.items():
            assert all(len(said) == 1 for said in of_models.values()), (prompt, of_models)
            assert len(set.union(*of_models.values())) == len(of_models), (prompt, of_models)

    def _chat_streaming(self):
        self._chat(stream=True)

    def _chat_whole(self):
        self._chat(stream=False)

    def _chat(self, *, stream):
        prompt = PROMPTS[next(self._numbers, 0) % len(PROMPTS)]
        with client_of(self.port) as client:
            while not self._ending.is_set():
                begun = time.monotonic()
                revision, text = chat(client, prompt, stream=stream)
                self.answers.append((begun, time.monotonic(), revision, (prompt, text)))
                self._ending.wait(self.pause_s)
