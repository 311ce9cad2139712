"""Checks of arguments that scorers share, with each other and with the ranking."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..bits import WORD_BITS
from ..checks import expect, expect_table, expect_tensor
from .levels import SCALE_DTYPES, full_score

LENGTHS = (torch.int32, torch.int64)
#: Query heads per KV head that the kernels of exact scores take, at most.
MAX_GROUP = 16


def check_codes(
    q_codes: torch.Tensor,
    codes: torch.Tensor,
    plane_weights: Sequence[int],
    scales: torch.Tensor | None,
    scale_bits: int,
) -> int:
    """Check the codes of queries and keys and what a score is made of; return words per code.

    Raises
    ------
    ValueError
        When a shape, dtype, device, ``plane_weights`` or ``scale_bits`` does not fit.
    """
    device = codes.device
    expect_tensor("codes", codes, shape=(None, None, None), dtypes=(torch.int32,), contiguous=True)
    slots, kv_heads, words = codes.shape
    valid = len(plane_weights) > 0 and all(type(w) is int and w > 0 for w in plane_weights)
    expect(valid, "plane_weights", "positive integers", plane_weights)
    expect_tensor(
        "q_codes",
        q_codes,
        shape=(None, kv_heads * len(plane_weights), words),
        dtypes=(torch.int32,),
        device=device,
        contiguous=True,
    )
    full = full_score(plane_weights, words * WORD_BITS)
    expect(full < 2**20, "bits times the sum of plane_weights", "less than 2**20", full)
    expect(scale_bits in (0, *SCALE_DTYPES), "scale_bits", "0, 8 or 16", scale_bits)
    expect(
        (scales is None) == (scale_bits == 0),
        "scales",
        "a tensor" if scale_bits else "None, because scale_bits is 0",
        "None" if scales is None else "a tensor",
    )
    if scales is not None:
        expect_tensor(
            "scales",
            scales,
            shape=(slots, kv_heads),
            dtypes=(SCALE_DTYPES[scale_bits],),
            device=device,
            contiguous=True,
        )
    return words


def check_rows(
    token_slots: torch.Tensor,
    seq_lens: torch.Tensor,
    batch: int,
    kv_heads: int,
    sink: int,
    recent: int,
    out: torch.Tensor,
) -> None:
    """Check the arguments that every scorer shares.

    Raises
    ------
    ValueError
        When a shape, dtype, device, ``sink`` or ``recent`` does not fit.
    """
    expect(sink >= 0, "sink", "at least 0", sink)
    expect(recent >= 0, "recent", "at least 0", recent)
    expect_tensor("out", out, shape=(batch, kv_heads, None), contiguous=True)
    expect_table("token_slots", token_slots, batch, out.device)
    expect(
        token_slots.shape[1] >= out.shape[2],
        "token_slots.shape[1]",
        f"at least out.shape[2] = {out.shape[2]}",
        token_slots.shape[1],
    )
    where = {"device": out.device, "contiguous": True}
    expect_tensor("seq_lens", seq_lens, shape=(batch,), dtypes=LENGTHS, **where)
