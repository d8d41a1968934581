"""What stands for the module pynvml: GPUs made of values. Its error classes and constants are the real module's."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from types import SimpleNamespace

GIB = 1 << 30


@dataclass
class Gpu:
    uuid: str
    total: int = 24 * GIB
    free: int = 20 * GIB
    reserved: int = GIB // 2
    compute: list[tuple[int, int | None]] | int = field(default_factory=list)  # or the error that asking for it is
    graphics: list[tuple[int, int | None]] | int = field(default_factory=list)
    slices: list[Gpu | None] | None = None  # of MIG; None among them: a gap
    memory_error: int | None = None  # of every version
    memory_v2_error: int | None = None
    error: int | None = None  # whatever is asked about it
    product: str = "NVIDIA H200"
    ecc: int | None = None  # uncorrectable errors since the driver was loaded; None: it does not count them
    remapped: tuple[int, int, int, int] | None = None  # rows: correctable, uncorrectable, pending, failed
    xids: list[int] = field(default_factory=list)  # that nobody has been told of yet


class Library:
    def __init__(self, real, *gpus: Gpu):
        for name in dir(real):
            if name.startswith(("NVML_", "NVMLError", "nvmlMemory_v2", "nvmlEventType")):
                setattr(self, name, getattr(real, name))
        self.gpus = list(gpus)
        self.init_error: int | None = None
        self.initialised = 0
        self.threads: set[int] = set()
        self.answer = threading.Event()
        self.answer.set()
        self.asked = threading.Event()
        self.calls = 0

    def nvmlInit(self):
        self.calls += 1
        self.asked.set()
        self.threads.add(threading.get_ident())
        if not self.answer.wait(30):
            raise AssertionError("the test never let NVML answer")
        self.fail(self.init_error)
        self.initialised += 1

    def nvmlShutdown(self):
        self.initialised -= 1

    def fail(self, error):
        if error is not None:
            raise self.NVMLError(error)

    def nvmlSystemGetDriverVersion(self):
        return "575.57.08"

    def nvmlDeviceGetCount(self):
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index):
        if index >= len(self.gpus):
            self.fail(self.NVML_ERROR_INVALID_ARGUMENT)
        return self.ask(self.gpus[index])

    def nvmlDeviceGetHandleByUUID(self, uuid):
        for gpu in self.gpus:
            for candidate in (gpu, *(gpu.slices or ())):
                if candidate is not None and candidate.uuid == uuid:
                    return self.ask(candidate)
        raise self.NVMLError(self.NVML_ERROR_NOT_FOUND)

    def ask(self, gpu):
        assert self.initialised > 0
        if not self.answer.wait(30):
            raise AssertionError("the test never let NVML answer")
        self.fail(gpu.error)
        return gpu

    def nvmlDeviceGetUUID(self, gpu):
        return self.ask(gpu).uuid

    def nvmlDeviceGetIndex(self, gpu):
        return self.gpus.index(gpu)

    def nvmlDeviceGetName(self, gpu):
        return gpu.product

    def nvmlDeviceGetTotalEccErrors(self, gpu, kind, counter):
        assert (kind, counter) == (self.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, self.NVML_VOLATILE_ECC)
        if gpu.ecc is None:
            self.fail(self.NVML_ERROR_NOT_SUPPORTED)
        return gpu.ecc

    def nvmlDeviceGetRemappedRows(self, gpu):
        if gpu.remapped is None:
            self.fail(self.NVML_ERROR_NOT_SUPPORTED)
        return gpu.remapped

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, part):
        for gpu in self.gpus:
            if part in (gpu.slices or ()):
                return gpu
        raise self.NVMLError(self.NVML_ERROR_INVALID_ARGUMENT)

    def nvmlEventSetCreate(self):
        return []

    def nvmlDeviceRegisterEvents(self, gpu, kinds, listened):
        assert kinds == self.nvmlEventTypeXidCriticalError
        listened.append(gpu)

    def nvmlEventSetWait_v2(self, listened, timeout_ms):
        assert timeout_ms == 0
        for gpu in listened:
            if gpu.xids:
                return SimpleNamespace(device=gpu, eventType=8, eventData=gpu.xids.pop(0))
        raise self.NVMLError(self.NVML_ERROR_TIMEOUT)

    def nvmlDeviceGetMigMode(self, gpu):
        if gpu.slices is None:
            self.fail(self.NVML_ERROR_NOT_SUPPORTED)
        return [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, gpu):
        return len(gpu.slices)

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu, index):
        if gpu.slices[index] is None:
            self.fail(self.NVML_ERROR_NOT_FOUND)
        return gpu.slices[index]

    def nvmlDeviceGetMemoryInfo(self, gpu, version=None):
        self.fail(gpu.memory_error)
        if version is None:
            return SimpleNamespace(total=gpu.total, free=gpu.free, used=gpu.total - gpu.free + gpu.reserved)
        if version == 2:
            self.fail(self.NVML_ERROR_FUNCTION_NOT_FOUND)
        assert version == self.nvmlMemory_v2
        self.fail(gpu.memory_v2_error)
        return SimpleNamespace(total=gpu.total, free=gpu.free, reserved=gpu.reserved, used=gpu.total - gpu.free)

    def listed(self, answer):
        if isinstance(answer, int):
            raise self.NVMLError(answer)
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in answer]

    def nvmlDeviceGetComputeRunningProcesses(self, gpu):
        return self.listed(gpu.compute)

    def nvmlDeviceGetGraphicsRunningProcesses(self, gpu):
        return self.listed(gpu.graphics)

    def nvmlDeviceGetComputeRunningProcesses_v2(self, gpu):
        return self.listed(gpu.compute)

    def nvmlDeviceGetGraphicsRunningProcesses_v2(self, gpu):
        return self.listed(gpu.graphics)

    def nvmlSystemGetProcessName(self, pid):
        return f"/usr/bin/process-{pid}"
