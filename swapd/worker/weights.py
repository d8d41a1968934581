"""Weights for an Engine that uses torch: staged beside the old model, on the device at the speed of the link.

    from swapd.worker.weights import Weights

    class Engine:
        def __init__(self):
            self.weights = Weights("/srv/models/a")          # safetensors files, or directories of them

        def stage(self, progress):
            self.weights.stage(progress)                     # while the old model serves

        def load(self, progress):
            model.load_state_dict(self.weights.load("cuda", progress), assign=True)

        def park(self):
            self.weights.park()                              # nothing is copied back

        def wake(self, progress):
            self.weights.wake(progress)                      # the model's parameters are valid again

One stretch of host memory and one of device memory hold all tensors; what `load` returns are views. So parking frees
one stretch and waking fills it again, and whoever holds views (a module's parameters) has them again, untouched. swapd
imports torch nowhere else, and here only when it is called. Not for several threads at once, but for `stop`.
"""

from __future__ import annotations

import importlib
import logging
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from swapd.core.errors import CANCELED, LOAD_FAILED, NOT_SUPPORTED, SwapdError
from swapd.worker.host_copy import HostCopy
from swapd.worker.on_device import OnDevice, Pinned
from swapd.worker.stopping import stopping

log = logging.getLogger("swapd.worker.weights")

Progress = Callable[..., None]

# Formats that torch has and numpy lacks included; F4 and F6, several elements a byte, are left out.
DTYPES: Final = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class HostTensor:
    """A tensor in host memory, for those without torch: `numpy.frombuffer(t.data, "<f4").reshape(t.shape)`."""

    dtype: str  # as safetensors calls it
    shape: tuple[int, ...]
    data: memoryview


@dataclass(slots=True)
class Took:
    """How long each part took the last time, in seconds; None: not done yet."""

    read_s: float | None = None
    pin_s: float | None = None
    copy_s: float | None = None


class Weights:
    def __init__(self, paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], *, pin: bool = True) -> None:
        """Nothing is read yet. `pin`: where CUDA is, `stage` pins the host memory. That makes the process's CUDA
        context, 300 to 500 MB of the device, while the old model serves; without, `load` copies from memory that is not
        pinned, several times slower."""
        self.took = Took()
        self._given = [Path(paths)] if isinstance(paths, (str, os.PathLike)) else [Path(path) for path in paths]
        self._pin = pin
        self._stop = threading.Event()
        self._copy: HostCopy | None = None
        self._memory: mmap.mmap | None = None
        self._pinned: Pinned | None = None
        self._on_device: OnDevice | None = None

    @property
    def size_bytes(self) -> int:
        """What they take, in host memory and on the device alike. Reads the headers. Raises SwapdError(LOAD_FAILED)."""
        return self._headers().size_bytes

    def stage(self, progress: Progress | None = None) -> None:
        """Into host memory, slowly enough not to disturb a model that serves; then pinned. Once.

        Raises SwapdError: LOAD_FAILED, OUT_OF_MEMORY, or CANCELED after `stop`. Nothing stays in memory then.
        """
        self._fill(progress, gently=True)
        if self._pin:
            self._pin_down(progress)

    def load(self, device: Any = "cuda", progress: Progress | None = None) -> dict[str, Any]:
        """Every tensor by its name, on `device`. What was not staged is read now, as fast as it goes.

        On "cpu" they are the host copy itself. They belong to whoever asked: writing to them there changes what a later
        `load` gives. Raises as `stage` does, and whatever torch raises.
        """
        torch = _torch()
        self._need_dtypes(torch)
        self._fill(progress, gently=False)
        assert self._memory is not None
        flat = host = torch.frombuffer(self._memory, dtype=torch.uint8)[: self.size_bytes]
        where = torch.device(device)
        if where.type != "cpu":
            if where.type == "cuda" and self._pin:
                self._pin_down(progress)
            self._on_device = OnDevice(torch, host, where)
            self._to_device(progress)
            flat = self._on_device.flat
        return {name: view for name, view in self._views(torch, flat)}

    def park(self) -> None:
        """Give the device's memory back: every tensor that `load` gave is invalid until `wake`, and what torch had
        cached is given back too. On "cpu" there is nothing to give."""
        if self._on_device is not None:
            self._on_device.drop()

    def wake(self, progress: Progress | None = None) -> None:
        """What `load` gave is valid again, at other addresses: CUDA graphs must be captured anew."""
        if self._on_device is not None:
            self._to_device(progress)

    def host_tensors(self, progress: Progress | None = None) -> dict[str, HostTensor]:
        """What `load("cpu")` gives, without torch."""
        self._fill(progress, gently=False)
        assert self._memory is not None
        view = memoryview(self._memory)
        return {
            p.tensor.name: HostTensor(p.tensor.dtype, p.tensor.shape, view[p.at : p.at + p.tensor.size_bytes])
            for p in self._headers().tensors
        }

    def stop(self) -> None:
        """From any thread: what reads or copies now, or later, raises SwapdError(CANCELED) within moments.

        A worker that is told to stop does as much by itself. For an async hook, cancelled while its thread works:
        `except CancelledError: self.weights.stop()`.
        """
        self._stop.set()

    # --- how ---

    def _headers(self) -> HostCopy:
        if self._copy is None:
            self._copy = HostCopy(_files(self._given))
        return self._copy

    def _fill(self, progress: Progress | None, *, gently: bool) -> None:
        if self._memory is not None:
            return
        started_s = time.monotonic()
        copy = self._headers()
        tell = _told(progress, "bytes")
        self._memory = copy.fill(tell, self._is_stopped, gently=gently)
        self.took.read_s = time.monotonic() - started_s
        log.info("weights.in_host_memory bytes=%d ms=%.0f", copy.size_bytes, self.took.read_s * 1000)

    def _pin_down(self, progress: Progress | None) -> None:
        torch = _torch_if_any()  # without it there is no CUDA that could want them pinned
        if torch is None or self._pinned is not None or not torch.cuda.is_available():
            return
        assert self._memory is not None
        started_s = time.monotonic()
        self._pinned = Pinned(torch, self._memory)
        self._pinned.pin(_told(progress, "bytes pinned"), self._need_going)
        self.took.pin_s = time.monotonic() - started_s
        log.info("weights.pinned bytes=%d ms=%.0f", self._pinned.pinned_bytes, self.took.pin_s * 1000)

    def _to_device(self, progress: Progress | None) -> None:
        assert self._on_device is not None
        started_s = time.monotonic()
        self._on_device.copy(_told(progress, "bytes"), self._need_going)
        self.took.copy_s = time.monotonic() - started_s
        log.info("weights.on_device bytes=%d ms=%.0f", self._headers().size_bytes, self.took.copy_s * 1000)

    def _is_stopped(self) -> bool:
        return self._stop.is_set() or stopping.is_set()

    def _need_going(self) -> None:
        if self._is_stopped():
            raise SwapdError(CANCELED, "Loading the weights was given up: it was told to stop.")

    def _need_dtypes(self, torch: Any) -> None:
        for placed in self._headers().tensors:
            tensor = placed.tensor
            if tensor.dtype not in DTYPES or not hasattr(torch, DTYPES[tensor.dtype]):
                text = (
                    f"Weights: tensor {tensor.name[:80]!r} is of type {tensor.dtype}, which torch {torch.__version__}"
                )
                raise SwapdError(LOAD_FAILED, f"{text} has no type for.")

    def _views(self, torch: Any, flat: Any) -> Iterator[tuple[str, Any]]:
        for placed in self._headers().tensors:
            tensor = placed.tensor
            whole = flat[placed.at : placed.at + tensor.size_bytes]
            yield tensor.name, whole.view(getattr(torch, DTYPES[tensor.dtype])).view(tensor.shape)


def _files(given: Iterable[Path]) -> list[Path]:
    """Each a file, or a directory of .safetensors files."""
    found: list[Path] = []
    for path in given:
        found.extend(sorted(path.glob("*.safetensors")) if path.is_dir() else [path])
    return found


def _told(progress: Progress | None, unit: str) -> Callable[[int, int], None]:
    def tell(done: int, total: int) -> None:
        if progress is not None:
            progress(done, total, unit=unit)

    return tell


def _torch_if_any() -> Any | None:
    try:
        return importlib.import_module("torch")
    except ImportError:
        return None


def _torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise SwapdError(NOT_SUPPORTED, f"Weights need torch, which cannot be imported: {error}.") from None
