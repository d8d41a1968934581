"""From pinned host memory to a device and away again, with the torch that is handed in. Knows nothing of files."""

from __future__ import annotations

import collections
import contextlib
import logging
import mmap
import time
from collections.abc import Callable
from typing import Any, Final

log = logging.getLogger("swapd.worker.weights")

PIN_BYTES: Final = 512 << 20  # registering in one call holds up every other CUDA call of the process (vllm#42632)
PIN_PAUSE_S: Final = 0.005  # between two of them others get their turn (vllm#54578)
CHUNK_BYTES: Final = 64 << 20  # divides PIN_BYTES: a copy across two registrations is refused; 1-5 ms at link speed
IN_FLIGHT: Final = 4
_PORTABLE: Final = 1  # cudaHostRegisterPortable: pinned for every device of the process

Tell = Callable[[int, int], None]


class Pinned:
    """A stretch of memory, page-locked for CUDA piece by piece. What cannot be pinned is copied more slowly."""

    def __init__(self, torch: Any, memory: mmap.mmap) -> None:
        self._torch = torch
        self._memory = memory
        self.pinned_bytes = 0

    def pin(self, tell: Tell, check: Callable[[], None]) -> None:
        with contextlib.suppress(OSError, AttributeError):
            # The kernel would copy every pinned page at a fork, and a child cannot use this one's CUDA anyway.
            self._memory.madvise(mmap.MADV_DONTFORK)
        runtime, total = self._torch.cuda.cudart(), len(self._memory)
        address = self._torch.frombuffer(self._memory, dtype=self._torch.uint8).data_ptr()
        while self.pinned_bytes < total:
            check()
            size = min(PIN_BYTES, total - self.pinned_bytes)
            error = int(runtime.cudaHostRegister(address + self.pinned_bytes, size, _PORTABLE))
            if error:
                self._forget_error()
                log.warning("weights.not_pinned at=%d bytes=%d cuda_error=%d", self.pinned_bytes, total, error)
                return
            self.pinned_bytes += size
            tell(self.pinned_bytes, total)
            time.sleep(PIN_PAUSE_S)

    def _forget_error(self) -> None:
        """CUDA keeps the last error for whoever asks next: torch would raise it at the model's first kernel."""
        with contextlib.suppress(RuntimeError):
            self._torch.zeros(1, device="cuda")


class OnDevice:
    """One stretch of device memory as large as the host's. Its storage comes and goes, its views stay."""

    def __init__(self, torch: Any, host: Any, device: Any) -> None:
        self._torch = torch
        self._host = host
        self._device = device
        self.flat = torch.empty(host.numel(), dtype=torch.uint8, device=device)

    def copy(self, tell: Tell, check: Callable[[], None]) -> None:
        """Everything, in chunks on a stream of its own; done when it returns."""
        storage = self.flat.untyped_storage()
        if storage.nbytes() != self._host.numel():
            storage.resize_(self._host.numel())
        if self._device.type != "cuda":
            self._copy_chunks(None, tell, check)
            return
        cuda = self._torch.cuda
        stream = cuda.Stream(self._device)
        stream.wait_stream(cuda.current_stream(self._device))  # whose memory it was before
        try:
            with cuda.stream(stream):
                self._copy_chunks(stream, tell, check)
        finally:
            stream.synchronize()

    def _copy_chunks(self, stream: Any, tell: Tell, check: Callable[[], None]) -> None:
        """A few under way at a time, so that the link is never idle and `tell` hears of what has arrived."""
        total, under_way = self._host.numel(), collections.deque[tuple[Any, int]]()
        for begin in range(0, total, CHUNK_BYTES):
            check()
            end = min(begin + CHUNK_BYTES, total)
            self.flat[begin:end].copy_(self._host[begin:end], non_blocking=True)
            under_way.append((stream.record_event() if stream is not None else None, end))
            if len(under_way) > IN_FLIGHT:
                _wait_and_tell(*under_way.popleft(), total, tell)
        while under_way:
            _wait_and_tell(*under_way.popleft(), total, tell)

    def drop(self) -> None:
        """Free the device's memory, once nothing computes with it any more."""
        if self._device.type == "cuda":
            self._torch.cuda.synchronize(self._device)
        self.flat.untyped_storage().resize_(0)
        if self._device.type == "cuda":
            self._torch.cuda.empty_cache()


def _wait_and_tell(event: Any, done: int, total: int, tell: Tell) -> None:
    if event is not None:
        event.synchronize()
    tell(done, total)
