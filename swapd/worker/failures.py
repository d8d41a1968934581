"""A model's exception as a `Problem` that the model's author understands: type, text, and their own line.

The full traceback belongs in the worker's log; this is the one line for the operator. Knows nothing of engines.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Final

from swapd.core.errors import OUT_OF_MEMORY, Problem, SwapdError

MAX_TEXT: Final = 2000
_PACKAGE_DIR: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# In an exception's type name or text, compared without case, spaces and underscores. Frameworks: torch
# ("CUDA out of memory", OutOfMemoryError), CuPy, JAX and TensorFlow (RESOURCE_EXHAUSTED), cuBLAS, CUDA's own.
_MEMORY_WORDS: Final = ("outofmemory", "resourceexhausted", "cudaerrormemoryallocation", "statusallocfailed")


def describe(code: str, what: str, error: BaseException, directory: str = "") -> Problem:
    """`error`, raised by the model while doing `what`. `directory` is where the model's own files lie."""
    if isinstance(error, SwapdError):
        return error.problem
    where = own_frame(error, directory)
    at = f" ({where})" if where else ""
    if isinstance(error, SystemExit):
        return Problem(code, f"{what}: the model called sys.exit({error.code!r}){at}")
    if is_out_of_memory(error):
        code = OUT_OF_MEMORY
    elif isinstance(error, ModuleNotFoundError) and error.name:
        hint = f"install it for {sys.executable}, or name another interpreter with python ="
        return Problem(code, f"{what}: there is no module {error.name!r}{at}; {hint}")
    text = _one_line(error)
    return Problem(code, f"{what}: {type(error).__name__}{': ' + text if text else ''}{at}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error`, or what caused it, says that memory ran out."""
    for each in _chain(error):
        if isinstance(each, MemoryError):
            return True
        said = f"{type(each).__name__} {_text(each)}".lower().replace(" ", "").replace("_", "")
        if any(word in said for word in _MEMORY_WORDS):
            return True
    return False


def own_frame(error: BaseException, directory: str) -> str:
    """`file:line, in function` of the last frame in the model's own code; "" if there is none.

    A frame below `directory` is preferred to one in a library, and swapd's and the import system's never count.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_short(error.filename, directory)}:{error.lineno}"
    frames = [frame for frame in _frames(error.__traceback__) if _is_foreign(frame.filename)]
    if not frames:
        return ""
    inside = [frame for frame in frames if directory and _is_below(frame.filename, directory)]
    own = [frame for frame in inside if "site-packages" not in frame.filename]
    frame = (own or inside or frames)[-1]
    function = "" if frame.name == "<module>" else f", in {frame.name}"
    return f"{_short(frame.filename, directory)}:{frame.lineno}{function}"


def _frames(start: TracebackType | None) -> list[traceback.FrameSummary]:
    return list(traceback.extract_tb(start))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, its causes, and the members of exception groups (anyio wraps a lifespan's error in one)."""
    todo, seen = [error], set[int]()
    while todo and len(seen) < 100:
        each = todo.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        if each.__cause__ is not None:
            todo.append(each.__cause__)
        elif each.__context__ is not None and not each.__suppress_context__:
            todo.append(each.__context__)
        members = getattr(each, "exceptions", ())
        if isinstance(members, tuple):
            todo.extend(member for member in members if isinstance(member, BaseException))


def _text(error: BaseException) -> str:
    try:
        return str(error.msg if isinstance(error, SyntaxError) else error)
    except Exception:  # a model's __str__ may fail too
        return ""


def _one_line(error: BaseException) -> str:
    text = " ".join(_text(error).split())
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _is_foreign(filename: str) -> bool:
    return not (filename.startswith("<frozen") or _is_below(filename, _PACKAGE_DIR) or "/uvicorn/" in filename)


def _is_below(filename: str, directory: str) -> bool:
    return os.path.abspath(filename).startswith(os.path.abspath(directory).rstrip("/") + "/")


def _short(filename: str, directory: str) -> str:
    if directory and _is_below(filename, directory):
        return os.path.relpath(filename, directory)
    return filename
