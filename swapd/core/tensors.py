"""One spelling for the types of tensors, as the protocol of KServe and Triton has them.

Source: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol#tensor-data-types
"""

from __future__ import annotations

from typing import Final

_ALIASES: Final = {
    **{"FLOAT16": "FP16", "HALF": "FP16", "FLOAT32": "FP32", "FLOAT": "FP32", "FLOAT64": "FP64", "DOUBLE": "FP64"},
    **{"BFLOAT16": "BF16", "STRING": "BYTES", "BOOLEAN": "BOOL", "LONG": "INT64", "INT": "INT32"},
}


def type_name(kind: object) -> str:
    """As the protocol spells it; NumPy's, PyTorch's and Triton's own names are understood. "": not told."""
    name = kind.upper().removeprefix("TYPE_").removeprefix("TORCH.") if isinstance(kind, str) else ""
    return _ALIASES.get(name, name)
