"""What tests of attention share: the definition in float64, and how close results come to it."""

from __future__ import annotations

import itertools

import torch

BF16, F16, F32, FP8 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn
NOWHERE = 2**31 - 1  # a slot that cannot be read


def softmax_attention(q, k_cache, v_cache, slots, *sizes, scale, k_scale=1.0, v_scale=1.0):
    """Attention one query head at a time.

    ``slots [bs, kv_heads, k]``, or ``[bs, k]`` for all heads; a row attends the least of its sizes.
    """
    out = torch.zeros(q.shape, dtype=torch.float64)
    group = q.shape[1] // k_cache.shape[1]
    for b, head in itertools.product(range(q.shape[0]), range(q.shape[1])):
        own = slots[b] if slots.dim() == 2 else slots[b, head // group]
        chosen = own[: min(int(size[b]) for size in sizes)].long()
        logits = scale * k_scale * (k_cache[chosen, head // group].double() @ q[b, head].double())
        out[b, head] = logits.softmax(0) @ (v_scale * v_cache[chosen, head // group].double())
    return out


def assert_close(out: torch.Tensor, expected: torch.Tensor) -> None:
    """Relative root mean square: rounding of the dtype, and no NaN."""
    error = (out.double().cpu() - expected.double().cpu()).norm() / expected.double().norm().cpu()
    assert error < {F32: 1e-5, F16: 2e-3, BF16: 1e-2}[out.dtype]
