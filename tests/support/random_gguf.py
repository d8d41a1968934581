"""Language models of any size with random weights, for a real llama-server: gibberish, always the same, and different
for each seed. Needs the `gguf` package."""

from __future__ import annotations

import gguf
import numpy as np

HEADS = 4
CONTEXT = 8192
SCALE = 0.3  # of the weights: large enough that no two tokens are nearly as likely


def write(path, *, seed, width=128, layers=6):
    """Some `layers` * (8 * width**2) * 2 bytes in F16: 1.6 MB as it stands."""
    numbers = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    tokens, kinds = vocabulary()
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(width)
    writer.add_block_count(layers)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(kinds)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)

    def add(name, rows, columns):
        block = numbers.standard_normal((min(rows, 512), columns), dtype=np.float32) * SCALE
        tensor = np.resize(block.astype(np.float16), (rows, columns))
        writer.add_tensor(f"{name}.weight", tensor)

    add("token_embd", len(tokens), width)
    add("output", len(tokens), width)
    writer.add_tensor("output_norm.weight", np.ones(width, dtype=np.float32))
    for layer in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
            add(f"blk.{layer}.{name}", width, width)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(width, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def vocabulary():
    """Every byte, and the characters that can be seen."""
    special = [("<unk>", gguf.TokenType.UNKNOWN), ("<s>", gguf.TokenType.CONTROL), ("</s>", gguf.TokenType.CONTROL)]
    of_bytes = [(f"<0x{number:02X}>", gguf.TokenType.BYTE) for number in range(256)]
    visible = [("▁", gguf.TokenType.NORMAL)]
    visible += [(chr(number), gguf.TokenType.NORMAL) for number in range(33, 127)]
    tokens, kinds = zip(*special, *of_bytes, *visible, strict=True)
    return list(tokens), [int(kind) for kind in kinds]
