"""The first bytes of GGUF files: header and metadata, in the order in which they are given."""

import struct

_INTS = {bool: (7, "?"), float: (6, "f")}


def string(text):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def value(item):
    if isinstance(item, str):
        return struct.pack("<I", 8) + string(item)
    if isinstance(item, list):
        kinds = [value(each) for each in item] or [struct.pack("<I", 4)]
        return (
            struct.pack("<I", 9) + kinds[0][:4] + struct.pack("<Q", len(item)) + b"".join(k[4:] for k in kinds if item)
        )
    kind, code = _INTS.get(type(item), (4, "I"))
    return struct.pack(f"<I{code}", kind, item)


def gguf(metadata, tensors=0):
    pairs = b"".join(string(key) + value(item) for key, item in metadata.items())
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, len(metadata)) + pairs


def language_model(architecture="llama", **changes):
    """Metadata as of a small model: 8192 tokens, 6 layers, 4 heads of 32. A change to None leaves it out."""
    usual = {
        "context_length": 8192,
        "embedding_length": 128,
        "block_count": 6,
        "attention.head_count": 4,
        **{key.replace("__", "."): item for key, item in changes.items()},
    }
    own = {f"{architecture}.{key}": item for key, item in usual.items() if item is not None}
    return {"general.architecture": architecture, **own, "tokenizer.ggml.tokens": ["a", "b", "<s>"] * 20}
