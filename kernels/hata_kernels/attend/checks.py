"""Checks that the calls of this folder share."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..checks import FLOATS, expect, expect_tensor

#: Sizes of a head, and query heads per KV head, that the Triton kernels take.
HEAD_DIMS, MAX_GROUP = (64, 96, 128, 256), 64


def check_caches(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor) -> None:
    """Check queries ``[bs, q_heads, D]`` and caches ``[slots, kv_heads, D]`` of one layer.

    Raises
    ------
    ValueError
        When a shape, dtype, device or contiguity does not fit.
    """
    where = k_cache.device
    expect_tensor("k_cache", k_cache, shape=(None, None, None), contiguous=True)
    _, kv_heads, dim = k_cache.shape
    expect_tensor("q", q, shape=(None, None, dim), dtypes=FLOATS, device=where)
    expect_tensor("k_cache", k_cache, dtypes=(q.dtype,))
    same = {"dtypes": (q.dtype,), "device": where, "contiguous": True}
    expect_tensor("v_cache", v_cache, shape=k_cache.shape, **same)
    expect(q.shape[1] % kv_heads == 0, "q.shape[1]", f"a multiple of {kv_heads}", q.shape[1])


def check_heads(q: torch.Tensor, group: int) -> None:
    """Check what the kernels take of ``q [bs, q_heads, D]`` and of query heads per KV head.

    Raises
    ------
    ValueError
        When the dtype, a head's stride, its size or ``group`` does not fit.
    """
    dim = q.shape[2]
    expect_tensor("q", q, dtypes=(torch.bfloat16, torch.float16))
    expect(q.stride()[1:] == (dim, 1), "q.stride()[1:]", (dim, 1), q.stride()[1:])
    expect(dim in HEAD_DIMS, "q.shape[2]", " or ".join(map(str, HEAD_DIMS)), dim)
    expect(1 <= group <= MAX_GROUP, "query heads per KV head", f"1 to {MAX_GROUP}", group)


def check_room(buffers: object, needed: Mapping[str, int], device: torch.device) -> None:
    """Check that the named tensors of some buffers have room for so many numbers each.

    Raises
    ------
    ValueError
        When one is too small or on another device.
    """
    for name, size in needed.items():
        tensor = getattr(buffers, name)
        expect_tensor(f"buffers.{name}", tensor, device=device)
        held = tensor.numel()
        expect(held >= size, f"buffers.{name}", f"{size} numbers", held)
