"""Static word embeddings (wordllama, 256 numbers a text, about 0.1 ms): an Engine class with hooks.

In swapd's config: `app = "static_words:Engine"`. An Engine is a class with a `load` hook and an `app`; its other
hooks are optional. The weights lie in the package; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from embeddings import EmbeddingsApi

NAME = "wordllama-256"


class Engine:
    app: EmbeddingsApi

    def load(self, progress: Callable[..., None] | None = None) -> None:
        import wordllama  # here, not at the top: importing is part of loading

        folder = Path(wordllama.__file__).parent
        model = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)
        self.app = EmbeddingsApi(NAME, lambda text: model.embed([text], norm=True)[0])
