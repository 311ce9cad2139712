"""CPU attention with the arguments of `attend_dense`, and the checks that both make."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..checks import expect, expect_lengths, expect_table, expect_tensor
from ..rows import RowGroups
from .gather_naive import check_caches
from .naive import attend_naive

if TYPE_CHECKING:
    from .dense import DenseBuffers


def check_dense(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    token_slots: torch.Tensor,
    seq_lens: torch.Tensor,
    groups: RowGroups | None,
    scale: float,
    logit_cap: float,
    out: torch.Tensor | None,
) -> torch.Tensor:
    """Check the arguments of both implementations; return ``out``, allocated when None.

    Raises
    ------
    ValueError
        When a shape, dtype, device, stride, ``scale`` or ``logit_cap`` does not fit.
    """
    check_caches(q, k_cache, v_cache)
    where, (batch, _, dim) = k_cache.device, q.shape
    expect(q.stride()[1:] == (dim, 1), "q.stride()[1:]", (dim, 1), q.stride()[1:])
    expect_table("token_slots", token_slots, batch, where)
    width = token_slots.shape[1]
    expect(width >= 1, "token_slots.shape[1]", "at least 1", width)
    lengths = {"dtypes": (torch.int32, torch.int64), "device": where, "contiguous": True}
    expect_tensor("seq_lens", seq_lens, shape=(batch,), **lengths)
    if groups is not None:
        groups.check(batch, 1, where)
    expect(scale > 0, "scale", "more than 0", scale)
    expect(logit_cap >= 0, "logit_cap", "at least 0", logit_cap)
    if out is None:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
    expect_tensor("out", out, shape=q.shape, dtypes=(q.dtype,), device=where, contiguous=True)
    return out


def attend_dense_naive(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    token_slots: torch.Tensor,
    seq_lens: torch.Tensor,
    groups: RowGroups | None,
    *,
    scale: float,
    logit_cap: float = 0.0,
    out: torch.Tensor | None = None,
    buffers: DenseBuffers | None = None,
) -> torch.Tensor:
    """Attention of every request over its whole context, for the token that it decodes.

    Parameters
    ----------
    q : torch.Tensor
        ``[bs, q_heads, D]`` float32, bfloat16 or float16. The heads of a token are contiguous;
        tokens may be apart, as in a fused projection.
    k_cache, v_cache : torch.Tensor
        ``[slots, kv_heads, D]``, contiguous, of the dtype of ``q``.
    token_slots : torch.Tensor
        int32 ``[bs, width]``: slots in position order; undefined beyond the lengths. Rows may be
        apart, tokens not.
    seq_lens : torch.Tensor
        int32 or int64 ``[bs]``, contiguous, tokens: 1 to width.
    groups : RowGroups or None
        Which rows have the same slots for their leading tokens, as `group_rows` finds them for
        these slots and for lengths that are not above ``seq_lens``; None: nobody looked. It changes
        what is read how often, not the result, so it is not looked at here.
    scale : float
        Softmax scale, more than 0.
    logit_cap : float
        See `attend_naive`.
    out : torch.Tensor, optional
        ``[bs, q_heads, D]``, contiguous, the dtype of ``q``. Allocated when None.
    buffers : DenseBuffers, optional
        Where the Triton implementation keeps partial results; there are none here.

    Returns
    -------
    torch.Tensor
        ``out``.

    Raises
    ------
    ValueError
        When a shape, dtype, device, stride, length, ``scale`` or ``logit_cap`` does not fit.
    """
    out = check_dense(q, k_cache, v_cache, token_slots, seq_lens, groups, scale, logit_cap, out)
    expect_lengths("seq_lens", seq_lens, token_slots.shape[1])
    slots = token_slots[:, None, :].expand(-1, k_cache.shape[1], -1)
    options = {"scale": scale, "logit_cap": logit_cap}
    return out.copy_(attend_naive(q, k_cache, v_cache, slots, seq_lens, **options))
