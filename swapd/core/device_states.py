"""What is the matter with a device: a state with a stable code, from what NVML answers.

Pure: errors come in by NVML's names, Xid errors by their numbers. Sources: the NVML API reference (nvmlReturn_t),
NVIDIA's "Xid Errors" (which are the application's, and which the GPU's), gpu-operator#1065 (94 is an application's).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from swapd.core.model import DeviceState

_S = DeviceState
_NOT_THERE: Final = "no such GPU: `swapd-cli devices` and `nvidia-smi -L` list those there are"

# What is wrong, and what to do about it, by NVML's names of errors.
NVML_TROUBLES: Final[Mapping[str, tuple[DeviceState, str]]] = {
    "NVML_ERROR_LIBRARY_NOT_FOUND": (
        _S.NO_DRIVER,
        "there is no NVIDIA driver here (libnvidia-ml.so.1 was not found)",
    ),
    "NVML_ERROR_DRIVER_NOT_LOADED": (_S.NO_DRIVER, "the NVIDIA driver is not loaded"),
    "NVML_ERROR_LIB_RM_VERSION_MISMATCH": (
        _S.DRIVER_MISMATCH,
        "the NVIDIA driver was upgraded under its running kernel module: reboot, or reload the module",
    ),
    "NVML_ERROR_GPU_IS_LOST": (
        _S.LOST,
        "the GPU is lost (it fell off the bus; see `dmesg` for Xid): reset it or reboot",
    ),
    "NVML_ERROR_RESET_REQUIRED": (_S.RESET_REQUIRED, "the GPU needs a reset"),
    "NVML_ERROR_NO_PERMISSION": (
        _S.NOT_PERMITTED,
        "NVML does not permit it: for a GPU with MIG, name its slices; else run as root",
    ),
    "NVML_ERROR_NOT_FOUND": (_S.NOT_FOUND, _NOT_THERE),
    "NVML_ERROR_INVALID_ARGUMENT": (_S.NOT_FOUND, _NOT_THERE),
    "NVML_ERROR_NOT_SUPPORTED": (
        _S.UNSUPPORTED,
        "NVML does not tell its memory (integrated GPUs share the host's: use a device of"
        ' kind = "host" with a budget, or say its `memory`)',
    ),
}

# States in which the GPU itself is well, so that its `memory`, where it is said, may be gone by.
MAY_GO_BY_WHAT_IS_SAID: Final = (_S.UNSUPPORTED, _S.NOT_PERMITTED)

# GPUs that have the host's memory and none of their own, by their names. A lost GPU must never be taken for one.
_INTEGRATED: Final = ("GB10", "Orin", "Xavier", "Thor", "Tegra")

# Xid errors after which the GPU, and not only the process that it names, is in trouble.
GPU_XIDS: Final[Mapping[int, str]] = {
    48: "a double-bit memory error",
    62: "its microcontroller halted",
    64: "its bad memory rows could not be recorded",
    74: "an NVLink error",
    79: "it fell off the bus",
    95: "an uncontained memory error",
    119: "its firmware does not answer",
    120: "its firmware failed",
    140: "an uncorrected memory error that was not recovered",
    143: "it could not be initialised",
    154: "it asks for a recovery",
}


def is_integrated(product: str) -> bool:
    """Whether the host's memory is what this GPU has."""
    return any(name in product.replace("-", " ").split() for name in _INTEGRATED)


def xid_words(numbers: Iterable[int]) -> tuple[DeviceState, str] | None:
    """What the newest error of the GPU itself means; None: there was none. Errors of applications are not told."""
    own = [number for number in numbers if number in GPU_XIDS]
    if not own:
        return None
    return _S.XID, f"Xid {own[-1]}, {GPU_XIDS[own[-1]]}: see `dmesg`, and reset the GPU"


def memory_error_words(uncorrected: int | None, pending: bool, failed: bool) -> tuple[DeviceState, str] | None:
    """Uncorrectable errors since the driver was loaded, and what became of the rows. None: nothing is known of any."""
    if failed:
        return _S.MEMORY_ERRORS, "bad rows of its memory could not be replaced by spare ones: have the GPU replaced"
    if pending:
        return _S.MEMORY_ERRORS, "bad rows of its memory are replaced by spare ones at its next reset: reset it"
    if uncorrected:
        errors = "1 uncorrectable memory error" if uncorrected == 1 else f"{uncorrected} uncorrectable memory errors"
        return _S.MEMORY_ERRORS, f"{errors} since the driver was loaded: reset the GPU"
    return None
