"""Checks of the keys, queries and buffers that an encoder is given."""

from __future__ import annotations

import torch

from ..checks import FLOATS, expect, expect_tensor
from ..tally import check_tally
from .weights import EncoderWeights


def check_heads(encoder: EncoderWeights, name: str, x: torch.Tensor, heads: int) -> None:
    """Check keys or queries ``[T, heads, D]``: floating point, where the encoder's weights are.

    Raises
    ------
    ValueError
        When the shape, dtype or device does not fit.
    """
    shape = (None, heads, encoder.head_dim)
    expect_tensor(name, x, shape=shape, dtypes=FLOATS, device=encoder.device)


def check_keys(
    encoder: EncoderWeights,
    k: torch.Tensor,
    codes: torch.Tensor,
    slots: torch.Tensor,
    scales: torch.Tensor | None,
    tally: torch.Tensor | None,
) -> None:
    """Check keys and what is written of them: the arguments of `Encoder.encode_keys`.

    Raises
    ------
    ValueError
        When a shape, dtype, device or contiguity does not fit.
    """
    check_heads(encoder, "k", k, encoder.num_kv_heads)
    where = {"device": k.device, "contiguous": True}
    shape = (None, encoder.num_kv_heads, encoder.words)
    expect_tensor("codes", codes, shape=shape, dtypes=(torch.int32,), **where)
    integers = (torch.int64, torch.int32)
    expect_tensor("slots", slots, shape=k.shape[:1], dtypes=integers, **where)
    dtype = encoder.scale_dtype
    if dtype is None:
        expect(scales is None, "scales", "None, because scale_bits is 0", "a tensor")
    else:
        expect(scales is not None, "scales", f"{dtype} [S, Hkv]", None)
        expect_tensor("scales", scales, shape=codes.shape[:2], dtypes=(dtype,), **where)
    check_tally(tally, k.device)
