"""Attention of a decode step: over the slots that were selected, or over whole contexts."""

from __future__ import annotations

import torch

from ..checks import INTEGERS, expect, expect_lengths, expect_table, expect_tensor
from ..rows import RowGroups
from ..tally import check_tally, count_attended
from .checks import check_caches
from .dense import DenseBuffers, launch_dense
from .gather import AttendBuffers, launch_gather
from .left_out import LeftOut, mix_left_out
from .naive import attend_naive


def attend(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    seq_lens: torch.Tensor,
    budgets: torch.Tensor,
    *,
    scale: float,
    out: torch.Tensor | None = None,
    buffers: AttendBuffers | None = None,
    tally: torch.Tensor | None = None,
    left_out: LeftOut | None = None,
) -> torch.Tensor:
    """Attention of every request over its selected slots, a selection per KV head.

    On CUDA products are taken in the dtype of ``q``, and summed in float32. Launches depend on
    shapes only: safe to capture. Lengths and budgets are read on the device and trusted: a count of
    less than 1 leaves the request's output undefined, one of more than k_max counts as k_max. On a
    GPU of compute capability 9.0 and up they are read while the launch before still runs, which
    must not write them.

    Parameters
    ----------
    q : torch.Tensor
        ``[bs, q_heads, D]`` float32, bfloat16 or float16; on CUDA not float32. On CUDA the heads of
        a token are contiguous; tokens may be apart, as in a fused projection.
    k_cache, v_cache : torch.Tensor
        ``[slots, kv_heads, D]``, contiguous, of the dtype of ``q``.
    slots : torch.Tensor
        int32 ``[bs, kv_heads, k_max]``, contiguous: what `rank` gives. The entries of row b from
        ``min(seq_lens[b], budgets[b])`` on are not read; those before may repeat.
    seq_lens, budgets : torch.Tensor
        int32 or int64, and int32, ``[bs]``, contiguous: request b attends
        ``min(seq_lens[b], budgets[b])`` slots of every KV head, 1 to k_max.
    scale : float
        Softmax scale.
    out : torch.Tensor, optional
        ``[bs, q_heads, D]``, contiguous, the dtype of ``q``. Allocated when None.
    buffers : AttendBuffers, optional
        For partial results on CUDA. Allocated when None.
    tally : torch.Tensor, optional
        See `hata_kernels.tally`: counts the requests, their contexts and what is attended.
    left_out : LeftOut, optional
        Mixes in the mean of the values left out, and adds to each request's sum the value of its
        newest token: the last of every selection, which is in position order.

    Returns
    -------
    torch.Tensor
        ``out``.

    Raises
    ------
    ValueError
        When a shape, dtype, device or contiguity does not fit; on a CPU when a count does not; on
        CUDA when the head size is not 64, 96, 128 or 256, the group is larger than 64, or the
        buffers are too small or elsewhere.
    """
    check_caches(q, k_cache, v_cache)
    where, batch, kv_heads = k_cache.device, q.shape[0], k_cache.shape[1]
    here = {"device": where, "contiguous": True}
    expect_tensor("slots", slots, shape=(batch, kv_heads, None), dtypes=(torch.int32,), **here)
    expect(slots.shape[2] >= 1, "slots.shape[2]", "at least 1", slots.shape[2])
    expect_tensor("seq_lens", seq_lens, shape=(batch,), dtypes=INTEGERS, **here)
    expect_tensor("budgets", budgets, shape=(batch,), dtypes=(torch.int32,), **here)
    check_tally(tally, where)
    if left_out is not None:
        left_out.check(batch, q.shape[1], k_cache)
    out = _output(out, q)
    run = launch_gather if k_cache.is_cuda else gather_reference
    tokens = (q, k_cache, v_cache, slots, seq_lens, budgets, out)
    run(*tokens, scale=scale, buffers=buffers, tally=tally, left_out=left_out)
    return out


def gather_reference(
    q, k_cache, v_cache, slots, seq_lens, budgets, out, *, scale, buffers, tally, left_out
) -> None:
    """`attend` by PyTorch, of checked arguments; no buffers are needed."""
    counts, most = torch.minimum(seq_lens, budgets), slots.shape[2]
    expect_lengths("seq_lens and budgets", counts, most, f"1 to {most} tokens of every row")
    count_attended(tally, slots, seq_lens, counts)
    out.copy_(attend_naive(q, k_cache, v_cache, slots, counts, scale=scale))
    if left_out is not None:
        mix_left_out(out, v_cache, slots, seq_lens, counts, left_out)


def attend_dense(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    token_slots: torch.Tensor,
    seq_lens: torch.Tensor,
    groups: RowGroups | None,
    *,
    scale: float,
    out: torch.Tensor | None = None,
    buffers: DenseBuffers | None = None,
) -> torch.Tensor:
    """Attention of every request over its whole context, for the token that it decodes.

    On CUDA products are taken in the dtype of ``q`` and summed in float32. Launches depend on
    shapes only: safe to capture. Lengths, groups and slots are read on the device and trusted; a
    length of more than the width counts as the width, and one of less than 1 leaves the row's
    output undefined. The result is the same in every run, and depends on the groups by rounding
    only. Kernels of a GPU of compute capability 9.0 and up read lengths and groups while the launch
    before still runs: it must not write them.

    Parameters
    ----------
    q : torch.Tensor
        ``[bs, q_heads, D]`` float32, bfloat16 or float16; on CUDA not float32. The heads of a token
        are contiguous; tokens may be apart, as in a fused projection.
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
        what is read how often, not the result, so it is not looked at on a CPU.
    scale : float
        Softmax scale, more than 0.
    out : torch.Tensor, optional
        ``[bs, q_heads, D]``, contiguous, the dtype of ``q``. Allocated when None.
    buffers : DenseBuffers, optional
        For partial results on CUDA. Allocated when None.

    Returns
    -------
    torch.Tensor
        ``out``.

    Raises
    ------
    ValueError
        When a shape, dtype, device, stride or ``scale`` does not fit; on a CPU when a length does
        not; on CUDA when the head size is not 64, 96, 128 or 256, the group is larger than 64, or
        the buffers are too small or elsewhere.
    """
    check_caches(q, k_cache, v_cache)
    where, (batch, _, dim) = k_cache.device, q.shape
    expect(q.stride()[1:] == (dim, 1), "q.stride()[1:]", (dim, 1), q.stride()[1:])
    expect_table("token_slots", token_slots, batch, where)
    width = token_slots.shape[1]
    expect(width >= 1, "token_slots.shape[1]", "at least 1", width)
    here = {"device": where, "contiguous": True}
    expect_tensor("seq_lens", seq_lens, shape=(batch,), dtypes=INTEGERS, **here)
    if groups is not None:
        groups.check(batch, 1, where)
    expect(scale > 0, "scale", "more than 0", scale)
    out = _output(out, q)
    run = launch_dense if k_cache.is_cuda else dense_reference
    run(q, k_cache, v_cache, token_slots, seq_lens, groups, out, scale=scale, buffers=buffers)
    return out


def dense_reference(
    q, k_cache, v_cache, token_slots, seq_lens, groups, out, *, scale, buffers
) -> None:
    """`attend_dense` by PyTorch, of checked arguments; no buffers are needed."""
    expect_lengths("seq_lens", seq_lens, token_slots.shape[1])
    slots = token_slots[:, None, :].expand(-1, k_cache.shape[1], -1)
    out.copy_(attend_naive(q, k_cache, v_cache, slots, seq_lens, scale=scale))


def _output(out: torch.Tensor | None, q: torch.Tensor) -> torch.Tensor:
    """``out``, checked, or allocated when None."""
    if out is None:
        return torch.empty_like(q, memory_format=torch.contiguous_format)
    expect_tensor("out", out, shape=q.shape, dtypes=(q.dtype,), device=q.device, contiguous=True)
    return out
