"""The mean of the values that a selection leaves out, mixed into the attention over it.

No token more is read for it: with S the sum of the values of all n tokens of a request for a KV
head, attention over k selected ones becomes

    (1 - c) attention + c (S - sum of the selected values) / (n - k)

with a constant c per query head and ratio n / k, which calibration finds.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..checks import INTEGERS, expect_tensor

#: Ratios n / k that have a weight: 1, 2, 4 .. 128. Between them weights are interpolated in the
#: logarithm, beyond the last it holds. The first is 0: nothing is left out.
RATIOS = 8


class LeftOut(NamedTuple):
    """What a step needs to mix in the mean of the values that its selections leave out.

    Attributes
    ----------
    sums : torch.Tensor
        float32 ``[requests, kv_heads, D]``, contiguous: the sum of the values of all tokens of each
        request, but for the one that the step decodes, which the step adds.
    rows : torch.Tensor
        int32 or int64 ``[bs]``, contiguous: each row's request. A row whose selection begins with
        slot 0 is a batch's padding: no sum changes for it, whatever its request.
    weights : torch.Tensor
        float32 ``[q_heads, RATIOS]``, contiguous: c at the ratios.
    """

    sums: torch.Tensor
    rows: torch.Tensor
    weights: torch.Tensor

    def check(self, batch: int, q_heads: int, k_cache: torch.Tensor) -> None:
        """Check what `attend` takes beside ``k_cache [slots, kv_heads, D]`` and so many queries.

        Raises
        ------
        ValueError
            When a shape, dtype, device or contiguity does not fit.
        """
        where = {"device": k_cache.device, "contiguous": True}
        shape = (None, *k_cache.shape[1:])
        expect_tensor("left_out.sums", self.sums, shape=shape, dtypes=(torch.float32,), **where)
        expect_tensor("left_out.rows", self.rows, shape=(batch,), dtypes=INTEGERS, **where)
        shape, dtypes = (q_heads, RATIOS), (torch.float32,)
        expect_tensor("left_out.weights", self.weights, shape=shape, dtypes=dtypes, **where)


def left_out_weight(
    weights: torch.Tensor, seq_lens: torch.Tensor, counts: torch.Tensor
) -> torch.Tensor:
    """What the mean of the values left out weighs, c.

    Parameters
    ----------
    weights : torch.Tensor
        float32 ``[q_heads, RATIOS]``: c at the ratios.
    seq_lens, counts : torch.Tensor
        ``[N]``: tokens n that a query sees, and k that are selected, at least 1.

    Returns
    -------
    torch.Tensor
        float32 ``[N, q_heads]``, 0 where all tokens are selected.
    """
    place = torch.log2(seq_lens.float() / counts).clamp(0, RATIOS - 1)
    low = place.floor().clamp_max(RATIOS - 2)
    between, columns, low = (place - low)[:, None], weights.T, low.long()
    return torch.lerp(columns[low], columns[low + 1], between)


def mix_left_out(
    out: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    seq_lens: torch.Tensor,
    counts: torch.Tensor,
    left_out: LeftOut,
) -> None:
    """Mix the mean of the values left out into attention over selections, in PyTorch.

    Parameters
    ----------
    out : torch.Tensor
        ``[bs, q_heads, D]``: attention over the selections; changed where they leave out a token.
    v_cache : torch.Tensor
        ``[slots, kv_heads, D]``.
    slots : torch.Tensor
        int32 ``[bs, kv_heads, k]``: in position order, the newest token last of ``counts[b]``.
    seq_lens, counts : torch.Tensor
        Integers ``[bs]``: tokens n of each request, and how many of its selection are attended.
    left_out : LeftOut
        Its sums get the newest tokens' values.
    """
    kv_heads = v_cache.shape[1]
    group, heads = out.shape[1] // kv_heads, torch.arange(kv_heads).unsqueeze(1)
    shares = left_out_weight(left_out.weights, seq_lens, counts)
    lengths = zip(seq_lens.tolist(), counts.tolist(), strict=True)
    for row, (length, count) in enumerate(lengths):
        own = slots[row, :, :count].long()
        if own[0, 0] == 0:
            continue
        values = v_cache[own, heads].float()
        total = left_out.sums[left_out.rows[row]]
        total += values[:, -1]
        if length > count:
            mean = (total - values.sum(1)) / (length - count)
            mean = mean.repeat_interleave(group, dim=0)
            out[row] = torch.lerp(out[row].float(), mean, shares[row, :, None])
