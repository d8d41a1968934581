"""Real input: sentences of this machine's own documents, and what each model answers to them.

`python -m demo.texts MODEL < texts.json` prints the answers of one model, in a process of its own, so that the
clients can compare every byte of every answer with what the model says when nobody swaps it.
"""

from __future__ import annotations

import base64
import inspect
import json
import pydoc_data.topics
import random
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

MODELS = Path(__file__).parent / "models"
DOCUMENTS = ("/usr/share/common-licenses", "/usr/share/doc")
DOCUMENTS_LIMIT, DOCUMENT_BYTES = 400, 200_000
WORDS = (3, 5)


def sentences(count: int, seed: int = 1) -> list[str]:
    """Different sentences out of licences, package documentation and Python's own manual."""
    found: set[str] = set()
    for text in _documents():
        for sentence in re.split(r"(?<=[.!?;:])\s+", re.sub(r"\s+", " ", text)):
            words = sentence.split()
            if WORDS[0] <= len(words) <= WORDS[1] and re.fullmatch(r"[A-Z][\w ,'()/-]+[.!?]", sentence, re.ASCII):
                found.add(sentence)
    ordered = sorted(found)
    random.Random(seed).shuffle(ordered)
    if len(ordered) < count:
        raise SystemExit(f"only {len(ordered)} sentences found on this machine, {count} are needed")
    return ordered[:count]


def _documents() -> Iterator[str]:
    yield from pydoc_data.topics.topics.values()
    for name in ("asyncio", "json", "pathlib", "random", "socket", "subprocess"):
        module = __import__(name)
        yield "\n".join(filter(None, (inspect.getdoc(thing) for thing in vars(module).values())))
    paths = (path for folder in DOCUMENTS for path in sorted(Path(folder).glob("**/*")))
    taken = 0
    for path in paths:
        if taken >= DOCUMENTS_LIMIT:
            return
        if path.is_file() and not path.is_symlink() and path.suffix in ("", ".txt", ".md"):
            taken += 1
            with path.open("rb") as file:
                yield file.read(DOCUMENT_BYTES).decode("utf-8", "replace")


def expected(model: str, singles: list[str], streams: list[list[str]]) -> dict[str, object]:
    """What one model answers: {"one": [base64, ...], "stream": [...], "listing": base64, "ms_per_text": n}."""
    sys.path.insert(0, str(MODELS))
    if model == "static":
        import static_words

        engine = static_words.Engine()
        engine.load()
        api = engine.app
    else:
        import e5

        api = e5.load(model)
    api.answer(singles[:1])
    begun = time.perf_counter()
    one = [base64.b64encode(api.answer([text])).decode() for text in singles]
    took = time.perf_counter() - begun
    stream = [base64.b64encode(api.stream(texts)).decode() for texts in streams]
    listing = base64.b64encode(api.listing()).decode()
    return {"one": one, "stream": stream, "listing": listing, "ms_per_text": took * 1000 / len(singles)}


def main() -> None:
    asked = json.load(sys.stdin)
    json.dump(expected(sys.argv[1], asked["singles"], asked["streams"]), sys.stdout)


if __name__ == "__main__":
    main()
