"""One reading of a GPU or MIG slice a call, on one thread with a deadline; and which of them there are."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import psutil

from swapd.core.device_states import MAY_GO_BY_WHAT_IS_SAID, NVML_TROUBLES, is_integrated
from swapd.core.devices import SeenGpu
from swapd.core.errors import DEVICE_UNKNOWN, SwapdError
from swapd.core.model import DeviceKind, DeviceReading, DeviceState
from swapd.core.sizes import human_bytes
from swapd.host.nvml.health import Health
from swapd.host.nvml.holders import in_initial_namespace, processes_on, shares_of

T = TypeVar("T")

# Longer than any healthy call (milliseconds; up to a second with persistence mode off, when the driver initialises
# the card for each), shorter than anybody's patience with `swapd-cli devices`.
DEFAULT_DEADLINE_S: Final = 2.0
# A GPU in trouble has NVML initialised afresh at most so often: that takes up to seconds for all of them, and what an
# Xid error tells meanwhile is lost.
AFRESH_S: Final = 60.0
MAX_FOREIGN: Final = 16  # processes of others that a reading names: those that hold most

# No GPU at all, as opposed to one in trouble.
_ABSENT: Final = ("NVML_ERROR_LIBRARY_NOT_FOUND", "NVML_ERROR_DRIVER_NOT_LOADED")
# Answers, as opposed to failures: NVML is well.
_ANSWERS: Final = (
    "NVML_ERROR_NOT_SUPPORTED",
    "NVML_ERROR_NO_PERMISSION",
    "NVML_ERROR_NOT_FOUND",
    "NVML_ERROR_INVALID_ARGUMENT",
)
# Ways in which old drivers and WSL refuse the second version of a call whose first one works.
_OLDER_CALL: Final = (
    "NVML_ERROR_FUNCTION_NOT_FOUND",
    "NVML_ERROR_ARGUMENT_VERSION_MISMATCH",
    "NVML_ERROR_INVALID_ARGUMENT",
    "NVML_ERROR_NOT_SUPPORTED",
    "NVML_ERROR_UNKNOWN",
)


class NvmlDeviceConfig(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def match(self) -> str | None: ...
    @property
    def headroom_bytes(self) -> int: ...
    @property
    def memory_bytes(self) -> int | None: ...


class _NoMatch(ValueError):
    """The configuration does not say which GPU it is."""


class _Wedged(Exception):
    """NVML has not answered in time, or still not come back from an earlier call."""


@dataclass(frozen=True, slots=True)
class _Memory:
    total_bytes: int
    free_bytes: int
    reserved_bytes: int | None  # by the driver; version 1 of the call does not tell


class Nvml:
    def __init__(
        self, *, library: Any = None, deadline_s: float = DEFAULT_DEADLINE_S, proc: Path = Path("/proc")
    ) -> None:
        """`library`: what stands for the module pynvml; imported when first needed if not given."""
        self._nvml = library
        self._deadline_s = deadline_s
        self._proc = proc
        self._lock = asyncio.Lock()
        self._pending: asyncio.Future[Any] | None = None
        self._late = False  # the pending call has missed its deadline
        self._initialised = False
        self._driver = ""
        self._health: Health
        self._xids: dict[str, list[int]] = {}  # of each card, by its UUID
        self._uuids: dict[str, str] = {}  # by the name of a device: as it was last seen
        self._afresh_from_s = 0.0

    async def list_devices(self) -> list[SeenGpu]:
        """GPUs, and instead of one that is divided by MIG its slices. Empty without a driver or a GPU.

        Raises SwapdError(DEVICE_UNKNOWN) when there is a driver and it is in trouble: that is not "no GPU".
        """
        try:
            return await self._call(self._list)
        except _Wedged:
            raise SwapdError(DEVICE_UNKNOWN, f"NVML: {self._no_answer}.") from None

    async def read_all(
        self, devices: Sequence[NvmlDeviceConfig], workers: Mapping[str, AbstractSet[int]]
    ) -> list[DeviceReading]:
        """One reading a device, in their order. `workers`: worker id -> the pids of its process tree."""
        wanted = list(devices)
        trees = {worker: frozenset(pids) for worker, pids in workers.items()}
        try:
            return await self._call(lambda: [self._read(device, trees) for device in wanted])
        except _Wedged:
            return [_unknown(device, trees, DeviceState.NO_ANSWER, self._no_answer) for device in wanted]

    async def stop(self) -> None:
        with contextlib.suppress(_Wedged):
            await self._call(self._shut_down)

    @property
    def _no_answer(self) -> str:
        return f"NVML did not answer in {self._deadline_s:g} s"

    # --- the thread ----------------------------------------------------------------------------------------

    async def _call(self, function: Callable[[], T]) -> T:
        """Run on a thread, with the deadline, and never on a second one while the last has not come back: a wedged
        driver costs one thread, not one a reading. Raises _Wedged."""
        loop = asyncio.get_running_loop()
        async with self._lock:
            give_up_at = loop.time() + self._deadline_s
            if self._pending is not None and not self._pending.done():
                if not self._late:  # a caller was cancelled; its call may well come back
                    await asyncio.wait({self._pending}, timeout=self._deadline_s)
                if not self._pending.done():
                    self._late = True
                    raise _Wedged
            answer: asyncio.Future[tuple[T | None, Exception | None]] = loop.create_future()
            self._pending, self._late = answer, False

            def work() -> None:
                result: tuple[T | None, Exception | None]
                try:
                    result = (function(), None)
                except Exception as error:
                    result = (None, error)
                with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
                    loop.call_soon_threadsafe(answer.set_result, result)

            # A daemon thread: unlike an executor's, it does not keep a stopping process from exiting.
            threading.Thread(target=work, name="swapd-nvml", daemon=True).start()
            await asyncio.wait({answer}, timeout=max(0.0, give_up_at - loop.time()))
            if not answer.done():
                self._late = True
                raise _Wedged
        value, error = answer.result()
        if error is not None:
            raise error
        return value  # type: ignore[return-value]

    # --- on the thread -------------------------------------------------------------------------------------

    def _initialise(self) -> None:
        if self._initialised:
            return
        if self._nvml is None:
            import pynvml  # on the thread: it compiles thousands of ctypes structures

            self._nvml = pynvml
        self._nvml.nvmlInit()
        self._health = Health(self._nvml, self._xids)
        self._initialised = True
        self._driver = ""
        with contextlib.suppress(Exception):
            self._driver = str(self._nvml.nvmlSystemGetDriverVersion())

    def _shut_down(self) -> None:
        if self._initialised:
            self._initialised = False
            with contextlib.suppress(Exception):
                self._nvml.nvmlShutdown()

    def _list(self) -> list[SeenGpu]:
        try:
            self._initialise()
            count = self._nvml.nvmlDeviceGetCount()
        except Exception as error:
            if isinstance(error, ImportError) or self._is(error, _ABSENT):
                return []
            self._shut_down()
            raise SwapdError(DEVICE_UNKNOWN, f"NVML: {self._say(error)[1]}.") from None
        seen: list[SeenGpu] = []
        for index in range(count):
            try:
                handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
                seen += self._slices(handle, index) if self._is_divided(handle) else [self._seen(handle, index)]
            except Exception as error:
                # One lost card must not hide the others, and must not be taken for a host without it either.
                raise SwapdError(DEVICE_UNKNOWN, f"NVML, GPU {index}: {self._say(error)[1]}.") from None
        return seen

    def _slices(self, parent: Any, index: int) -> list[SeenGpu]:
        found: list[SeenGpu] = []
        for number in range(self._nvml.nvmlDeviceGetMaxMigDeviceCount(parent)):
            try:
                handle = self._nvml.nvmlDeviceGetMigDeviceHandleByIndex(parent, number)
            except self._nvml.NVMLError as error:
                if self._is(error, ("NVML_ERROR_NOT_FOUND", "NVML_ERROR_INVALID_ARGUMENT")):
                    continue  # the numbers have gaps
                raise
            found.append(self._seen(handle, index, number))
        return found

    def _seen(self, handle: Any, index: int, number: int | None = None) -> SeenGpu:
        return SeenGpu(str(self._nvml.nvmlDeviceGetUUID(handle)), index, number, self._product(handle))

    def _is_divided(self, handle: Any) -> bool:
        try:
            return bool(self._nvml.nvmlDeviceGetMigMode(handle)[0])
        except Exception:
            return False  # not supported: most cards, and the slices themselves

    def _product(self, handle: Any) -> str:
        with contextlib.suppress(Exception):
            return str(self._nvml.nvmlDeviceGetName(handle))
        return "NVIDIA GPU"

    def _read(self, device: NvmlDeviceConfig, workers: Mapping[str, AbstractSet[int]]) -> DeviceReading:
        """Total: whatever goes wrong becomes an unknown reading that says so."""
        handle = None
        try:
            self._initialise()
            handle = self._handle(device.match)
            if self._is_divided(handle):
                slices = ", ".join(s.uuid for s in self._slices(handle, 0)) or "none yet"
                why = f"it is divided by MIG: match a slice ({slices})"
                return _unknown(device, workers, DeviceState.DIVIDED, why)
            uuid = self._uuids[device.name] = str(self._nvml.nvmlDeviceGetUUID(handle))
            state, trouble = self._health.trouble(handle, uuid)
            try:
                memory = self._memory(handle)
            except Exception as error:
                other = self._other_memory(device, handle, error)
                if other is None:
                    raise
                memory, state, trouble = other
        except Exception as error:
            if not isinstance(error, ValueError) and not self._is(error, _ANSWERS):
                self._begin_afresh(self._uuids.get(device.name, ""))
            return _unknown(device, workers, *self._say(error))
        product = self._product(handle)
        details = [product]
        if self._driver:
            details.append(f"driver {self._driver}")
        if memory.reserved_bytes is not None:
            details.append(f"{human_bytes(memory.reserved_bytes)} reserved by it")
        processes = processes_on(self._nvml, handle, memory.total_bytes)
        if processes is None:
            details.append("who holds its memory cannot be read")
        used_by, foreign = shares_of(self._nvml, self._proc, processes or {}, workers)
        measured = state is not DeviceState.UNMEASURED and not is_integrated(product)
        sizes_told = measured and processes is not None and None not in processes.values()
        return DeviceReading(
            name=device.name,
            kind=DeviceKind.NVML,
            headroom_bytes=device.headroom_bytes,
            total_bytes=memory.total_bytes,
            free_bytes=memory.free_bytes,
            used_by=used_by,
            foreign=foreign[:MAX_FOREIGN],
            uuid=uuid,
            detail=", ".join([*details, *filter(None, [trouble])]),
            index=self._index(handle) if uuid.startswith("GPU-") else None,
            state=state,
            trouble=trouble,
            holders_known=processes is not None,
            product=product,
            names_all=sizes_told and in_initial_namespace(self._proc),
        )

    def _begin_afresh(self, uuid: str) -> None:
        """A lost card or an upgraded driver can come back, and NVML then wants to be initialised afresh. What the card
        had told before is of no use any more."""
        self._xids.pop(uuid, None)
        if time.monotonic() >= self._afresh_from_s:
            self._afresh_from_s = time.monotonic() + AFRESH_S
            self._shut_down()

    def _other_memory(
        self, device: NvmlDeviceConfig, handle: Any, error: Exception
    ) -> tuple[_Memory, DeviceState, str] | None:
        """Where NVML does not tell it: that of the host, of a GPU that is known to share it; else what is said."""
        state, why = self._say(error)
        if state is DeviceState.UNSUPPORTED and is_integrated(self._product(handle)):
            host = psutil.virtual_memory()
            total = min(host.total, device.memory_bytes or host.total)
            return _Memory(total, min(total, host.available), None), DeviceState.OK, ""
        if device.memory_bytes is None or state not in MAY_GO_BY_WHAT_IS_SAID:
            return None
        said = (
            f"{why.partition(' (')[0]}: what is promised is counted against memory = {human_bytes(device.memory_bytes)}"
        )
        return _Memory(device.memory_bytes, device.memory_bytes, None), DeviceState.UNMEASURED, said

    def _index(self, handle: Any) -> int | None:
        with contextlib.suppress(Exception):
            return int(self._nvml.nvmlDeviceGetIndex(handle))
        return None

    def _handle(self, match: str | None) -> Any:
        if match is None or not match.strip():
            raise _NoMatch('no `match` says which GPU it is: "GPU-…", "MIG-…" or an index')
        if match.isdigit():
            return self._nvml.nvmlDeviceGetHandleByIndex(int(match))
        return self._nvml.nvmlDeviceGetHandleByUUID(match)

    def _memory(self, handle: Any) -> _Memory:
        """By `free`: `used` includes what the driver reserves in version 1, and sources differ on version 2."""
        version = getattr(self._nvml, "nvmlMemory_v2", None)  # not 2: that fails with FunctionNotFound
        raw: Any = None
        if version is not None:
            try:
                raw = self._nvml.nvmlDeviceGetMemoryInfo(handle, version=version)
            except Exception as error:
                if not self._is(error, _OLDER_CALL):
                    raise
        if raw is None:
            raw = self._nvml.nvmlDeviceGetMemoryInfo(handle)
        memory = _Memory(int(raw.total), int(raw.free), getattr(raw, "reserved", None))
        if not memory.total_bytes > 0 or not 0 <= memory.free_bytes <= memory.total_bytes:
            raise ValueError(f"NVML says {memory.free_bytes} of {memory.total_bytes} bytes are free, which cannot be")
        return memory

    def _is(self, error: Exception, names: Iterable[str]) -> bool:
        value = getattr(error, "value", None)
        return value is not None and any(value == getattr(self._nvml, name, None) for name in names)

    def _say(self, error: Exception) -> tuple[DeviceState, str]:
        if isinstance(error, ImportError):
            return DeviceState.NO_DRIVER, "nvidia-ml-py is not installed"
        for name, found in NVML_TROUBLES.items():
            if self._is(error, (name,)):
                return found
        if isinstance(error, _NoMatch):
            return DeviceState.NOT_FOUND, str(error)
        if isinstance(error, ValueError):
            return DeviceState.FAILED, str(error)
        return DeviceState.FAILED, f"NVML failed: {error}" if str(error) else f"NVML failed: {type(error).__name__}"


def _unknown(device: NvmlDeviceConfig, workers: Iterable[str], state: DeviceState, why: str) -> DeviceReading:
    used_by = tuple((worker, None) for worker in sorted(workers))
    return DeviceReading(
        device.name,
        DeviceKind.NVML,
        device.headroom_bytes,
        None,
        None,
        used_by,
        detail=why,
        state=state,
        trouble=why,
        holders_known=False,
    )
