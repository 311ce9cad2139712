"""Compile the encoders' kernels, as keys, queries and steps launch them."""

from __future__ import annotations

import torch

from compiling import BF16, F16, F32, zeros
from hata_kernels.encode.triton import encode_triton
from hata_kernels.encode.triton_residual import encode_residual_triton
from hata_kernels.encode.triton_step import encode_step_asymmetric
from hata_kernels.encode.triton_step_linear import encode_step_linear
from hata_kernels.encoders import AsymmetricEncoder, LinearEncoder, MlpEncoder
from hata_kernels.tally import SIZE


def encode_all() -> None:
    """Linear, asymmetric and MLP encoders: dtypes, odd sizes, scales, few and many tokens."""
    for dtype, weight_dtype in ((BF16, BF16), (F16, F16), (BF16, F32), (F32, F32)):
        for dim, bits, heads in ((128, 128, 4), (64, 96, 3), (96, 256, 1)):
            q = zeros(2, 2 * heads, dim, dtype=dtype)
            encode_triton(q, zeros(heads, dim, bits, dtype=weight_dtype))
    for scale_bits in (0, 8, 16):
        steps = {"scale_step": torch.ones(2)} if scale_bits else {}
        shape = {"num_kv_heads": 2, "group": 4, "head_dim": 128}
        linear = {"weight": torch.randn(2, 128, 256), **steps}
        run_keys(LinearEncoder.from_tensors(linear, scale_bits=scale_bits, **shape))
        asymmetric = {
            "key_weight": torch.randn(2, 128, 128),
            "key_bias": torch.randn(2, 128),
            "query_weight": torch.randn(2, 512, 128),
            "query_bias": torch.randn(2, 128),
            **steps,
        }
        for planes in (1, 4, 8) if scale_bits == 0 else (3,):
            options = {"query_bits": planes, "scale_bits": scale_bits}
            encoder = AsymmetricEncoder.from_tensors(asymmetric, **options, **shape)
            run_keys(encoder)
            run_queries(encoder, BF16)
    for bits, group, dim in ((96, 3, 64), (256, 7, 256), (32, 1, 96)):
        tensors = {
            "key_weight": torch.randn(1, dim, bits),
            "key_bias": torch.randn(1, bits),
            "query_weight": torch.randn(1, group * dim, bits),
            "query_bias": torch.randn(1, bits),
        }
        encoder = AsymmetricEncoder(tensors, num_kv_heads=1, group=group, head_dim=dim)
        for dtype in (BF16, F32):
            run_queries(encoder.to("cpu", dtype), dtype)
    residual_all()
    encoder = mlp()
    run_keys(encoder)
    run_queries(encoder.to("cpu", BF16), BF16)


def mlp() -> MlpEncoder:
    """HashAttention's, of 32 bits."""
    tensors = {}
    for side in ("key", "query"):
        for n, (size, out) in enumerate(((128, 128), (128, 128), (128, 32))):
            tensors[f"{side}.{n}.weight"] = torch.randn(4, size, out)
            tensors[f"{side}.{n}.bias"] = torch.randn(4, out)
    return MlpEncoder.from_tensors(tensors, num_kv_heads=2, group=2, head_dim=128)


def linear_and_asymmetric() -> tuple[LinearEncoder, AsymmetricEncoder]:
    """Encoders of 128 bits as a server has them."""
    shape = {"num_kv_heads": 2, "group": 4, "head_dim": 128}
    tensors = {
        "key_weight": torch.randn(2, 128, 128),
        "key_bias": torch.randn(2, 128),
        "query_weight": torch.randn(2, 512, 128),
        "query_bias": torch.randn(2, 128),
        "residual_weight": torch.randn(2, 64, 64),
    }
    linear = LinearEncoder({"weight": torch.randn(2, 128, 128)}, **shape)
    asymmetric = AsymmetricEncoder(tensors, **shape, stages=2)
    return linear.to("cpu", BF16), asymmetric.to("cpu", BF16)


def residual_all() -> None:
    """Keys in two stages: whole and half words, scales, the largest code, mixed dtypes."""
    for dim, bits, scale_bits in (
        (128, 128, 0), (128, 256, 16), (64, 96, 8), (96, 32, 8), (128, 64, 0), (256, 1024, 0),
    ):  # fmt: skip
        tensors = {
            "key_weight": torch.randn(2, dim, bits),
            "key_bias": torch.randn(2, bits),
            "query_weight": torch.randn(2, dim, bits),
            "query_bias": torch.randn(2, bits),
            "residual_weight": torch.randn(2, bits // 2, bits // 2),
        }
        if scale_bits:
            tensors["scale_step"] = torch.ones(2)
        shape = {"num_kv_heads": 2, "group": 1, "head_dim": dim}
        run_keys(AsymmetricEncoder(tensors, **shape, scale_bits=scale_bits, stages=2))
    # float32 weights under half-precision keys.
    encode_residual_triton(
        zeros(50, 2, 128, dtype=BF16),
        zeros(2, 128, 256, dtype=F32),
        zeros(2, 256, dtype=F32),
        zeros(2, 128, 128, dtype=F32),
        out=zeros(99, 2, 8),
        slots=zeros(50),
    )


def run_keys(encoder) -> None:
    """A decoding step's few keys, and a prefill's many, in bfloat16; also float32 keys."""
    for dtype, tokens in ((BF16, 1), (BF16, 100), (F32, 40)):
        k = torch.randn(tokens, encoder.num_kv_heads, encoder.head_dim).to(dtype)
        codes = zeros(200, encoder.num_kv_heads, encoder.words)
        scales = None
        if encoder.scale_bits:
            scales = zeros(200, encoder.num_kv_heads, dtype=encoder.scale_dtype)
        there, slots = encoder.to("cpu", dtype), torch.arange(tokens)
        there._launch_keys(k, codes, slots, scales, zeros(SIZE, dtype=torch.int64))


def run_queries(encoder, dtype: torch.dtype) -> None:
    """A decoding step's queries, as a slice of a fused projection."""
    heads, dim = encoder.num_kv_heads * encoder.group, encoder.head_dim
    for tokens in (1, 20):
        fused = torch.randn(tokens, (heads + 2) * dim).to(dtype)
        encoder.to("cpu", dtype)._launch_queries(fused[:, : heads * dim].unflatten(1, (heads, dim)))


def step_all() -> None:
    """A step's queries and keys in one launch: linear, and asymmetric with one and two stages."""
    for tokens, heads, group, dim, bits, scale_dtype in (
        (8, 8, 4, 128, 128, None), (1, 3, 3, 64, 96, None), (8, 32, 1, 128, 128, None),
        (8, 4, 7, 128, 256, None), (4, 2, 2, 256, 64, None), (40, 2, 4, 128, 128, torch.uint8),
        (20, 2, 3, 96, 256, torch.int16),
    ):  # fmt: skip
        q, k = zeros(tokens, heads * group, dim, dtype=BF16), zeros(tokens, heads, dim, dtype=BF16)
        stored = {"codes": zeros(99, heads, bits // 32), "slots": zeros(tokens)}
        stored["tally"] = zeros(SIZE, dtype=torch.int64)
        if scale_dtype:
            steps = zeros(heads, dtype=F32)
            stored |= {"scales": zeros(99, heads, dtype=scale_dtype), "scale_step": steps}
        weight, bias = zeros(heads, dim, bits, dtype=BF16), zeros(heads, bits, dtype=F32)
        encode_step_linear(q, k, weight, **stored)
        queries = (zeros(heads, group * dim, bits, dtype=BF16), bias)
        for residual in (None, zeros(heads, bits // 2, bits // 2, dtype=BF16)):
            keys = (weight, bias, residual)
            encode_step_asymmetric(q, k, *queries, *keys, planes=4, clip=2.5, **stored)
