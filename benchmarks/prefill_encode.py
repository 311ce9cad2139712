"""What encoding a prompt's keys takes beside the attention of the same layer, on one GPU.

    python benchmarks/prefill_encode.py --out prefill_encode.csv

Llama-3.1-8B's shape, random weights, chunks as SGLang prefills them. Attention is PyTorch's causal
flash attention of the whole prompt.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from hata_sglang.bench.layer import random_encoder
from hata_sglang.bench.shapes import SHAPES
from hata_sglang.bench.timing import time_layers
from hata_sglang.bench.versions import VERSIONS
from hata_sglang.evaluation.results import ResultFile

CHUNK = 8192  # SGLang's --chunked-prefill-size
KEYS = ("shape", "tokens", "method", "bits")
COLUMNS = (*KEYS, "encode_us", "attention_us", "share", *VERSIONS)


def main() -> None:
    """Append a row per method, bits and length of the prompt."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    results = ResultFile(parser.parse_args().out, COLUMNS, KEYS)
    shape = SHAPES["llama-3.1-8b"]
    make = {"device": "cuda", "dtype": torch.bfloat16}
    for tokens in (8192, 32768):
        q = torch.randn(1, shape.q_heads, tokens, shape.dim, **make)
        k, v = torch.randn(2, 1, shape.kv_heads, tokens, shape.dim, **make)

        def attend(_: int, q=q, k=k, v=v) -> torch.Tensor:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                return torch.nn.functional.scaled_dot_product_attention(
                    q, k, v, is_causal=True, enable_gqa=True
                )

        attention = time_layers(attend, 1, replays=5).p50
        keys = torch.randn(tokens, shape.kv_heads, shape.dim, **make)
        slots = 1 + torch.randperm(tokens, device="cuda")
        for method, bits in (
            ("asymmetric", 128), ("asymmetric", 64), ("hata", 128), ("hata", 64),
        ):  # fmt: skip
            encoder = random_encoder(shape, method, bits)
            codes = torch.zeros(
                tokens + 1, shape.kv_heads, encoder.words, dtype=torch.int32, device="cuda"
            )

            def encode(_: int, encoder=encoder, codes=codes, keys=keys, slots=slots) -> None:
                for first in range(0, len(keys), CHUNK):
                    chunk = slice(first, first + CHUNK)
                    encoder.encode_keys(keys[chunk], codes=codes, slots=slots[chunk])

            took = time_layers(encode, 1).p50
            values = (shape.name, tokens, method, bits)
            row = dict(zip(KEYS, values, strict=True)) | VERSIONS
            row |= {"encode_us": round(took, 2), "attention_us": round(attention, 1)}
            results.append([{**row, "share": round(took / attention, 5)}])
            print(*values, row["encode_us"], row["attention_us"], f"{took / attention:.3%}")


if __name__ == "__main__":
    main()
