"""Safetensors files written by hand: no library that might share a mistake with the reader."""

import json
import struct


def write(path, tensors, metadata=None):
    """`tensors`: name -> (dtype, shape, bytes), laid out in this order."""
    header = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors.values():
            file.write(data)
    return path


def pattern(size, seed=0):
    """Bytes in which a piece that lies elsewhere than it should is seen."""
    return bytes((n * 7 + n // 251 + seed) % 256 for n in range(size))
