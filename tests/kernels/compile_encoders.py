"""Compile the encoders' kernels, as keys, queries and steps launch them."""

from __future__ import annotations

import torch

from compiling import BF16, F16, F32, zeros
from encoder_cases import make
from hata_kernels.encode.triton import encode_triton
from hata_kernels.encoders import AsymmetricEncoder, LinearEncoder, MlpEncoder
from hata_kernels.tally import SIZE


def encode_all() -> None:
    """Linear, asymmetric and MLP encoders: dtypes, odd sizes, scales, few and many tokens."""
    for dtype in (BF16, F16, F32):
        for dim, bits, heads in ((128, 128, 4), (64, 96, 3), (96, 256, 1)):
            q = zeros(2, 2 * heads, dim, dtype=dtype)
            encode_triton(q, zeros(heads, dim, bits, dtype=dtype))
    for scale_bits in (0, 8, 16):
        run_keys(make("hata", 2, 4, 128, 256, scale_bits=scale_bits))
        for planes in (1, 4, 8) if scale_bits == 0 else (3,):
            options = {"query_bits": planes, "scale_bits": scale_bits}
            encoder = make("asymmetric", 2, 4, 128, 128, **options)
            run_keys(encoder)
            run_queries(encoder, BF16)
    for bits, group, dim in ((96, 3, 64), (256, 7, 256), (32, 1, 96)):
        encoder = make("asymmetric", 1, group, dim, bits, biased=bits > 32)
        for dtype in (BF16, F32):
            run_queries(encoder.to("cpu", dtype), dtype)
    residual_all()
    encoder = mlp()
    run_keys(encoder)
    run_queries(encoder.to("cpu", BF16), BF16)


def mlp() -> MlpEncoder:
    """HashAttention's, of 32 bits."""
    return make("hashattention", 2, 2, 128, hidden=(128, 128))


def linear_and_asymmetric() -> tuple[LinearEncoder, AsymmetricEncoder]:
    """Encoders of 128 bits as a server has them."""
    linear = make("hata", 2, 4, 128, 128)
    asymmetric = make("asymmetric", 2, 4, 128, 128, stages=2, biased=True)
    return linear.to("cpu", BF16), asymmetric.to("cpu", BF16)


def residual_all() -> None:
    """Keys in two stages: whole and half words, scales, the largest code."""
    for dim, bits, scale_bits in (
        (128, 128, 0), (128, 256, 16), (64, 96, 8), (96, 32, 8), (128, 64, 0), (256, 1024, 0),
    ):  # fmt: skip
        run_keys(make("asymmetric", 2, 1, dim, bits, scale_bits=scale_bits, stages=2))


def run_keys(encoder) -> None:
    """A decoding step's few keys, and a prefill's many, in bfloat16; also float32 keys."""
    for dtype, tokens in ((BF16, 1), (BF16, 100), (F32, 40)):
        k = torch.randn(tokens, encoder.num_kv_heads, encoder.head_dim).to(dtype)
        codes, scales = buffers(encoder)
        there, slots = encoder.to("cpu", dtype), torch.arange(tokens)
        there._launch_keys(k, codes, slots, scales, zeros(SIZE, dtype=torch.int64))


def buffers(encoder) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Codes and scales of 200 slots."""
    codes = zeros(200, encoder.num_kv_heads, encoder.words)
    if encoder.scale_bits == 0:
        return codes, None
    return codes, zeros(200, encoder.num_kv_heads, dtype=encoder.scale_dtype)


def run_queries(encoder, dtype: torch.dtype) -> None:
    """A decoding step's queries, as a slice of a fused projection."""
    heads, dim = encoder.num_kv_heads * encoder.group, encoder.head_dim
    for tokens in (1, 20):
        fused = torch.randn(tokens, (heads + 2) * dim).to(dtype)
        encoder.to("cpu", dtype)._launch_queries(fused[:, : heads * dim].unflatten(1, (heads, dim)))


def step_all() -> None:
    """A step's queries and keys in one launch: linear, and asymmetric with one and two stages."""
    for tokens, *shape, scale_bits in (
        (8, 8, 4, 128, 128, 0), (1, 3, 3, 64, 96, 0), (8, 32, 1, 128, 128, 0),
        (8, 4, 7, 128, 256, 0), (4, 2, 2, 256, 64, 0), (40, 2, 4, 128, 128, 8),
        (20, 2, 3, 96, 256, 16),
    ):  # fmt: skip
        heads, group, dim, _ = shape
        q, k = zeros(tokens, heads * group, dim, dtype=BF16), zeros(tokens, heads, dim, dtype=BF16)
        of_two = {"stages": 2, "biased": True}
        for method, options in (("hata", {}), ("asymmetric", {}), ("asymmetric", of_two)):
            encoder = make(method, *shape, scale_bits=scale_bits, **options).to("cpu", BF16)
            codes, scales = buffers(encoder)
            stored = (codes, zeros(tokens), scales)
            encoder._launch_step(q, k, *stored, None, zeros(SIZE, dtype=torch.int64))
