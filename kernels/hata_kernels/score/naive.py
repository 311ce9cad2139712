"""CPU scores: weighted hamming agreement of codes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..bits import WORD_BITS
from ..checks import expect_lengths
from .distance import distance_bucket
from .levels import full_score, scaled_scores, score_levels


def score_naive(
    q_codes: torch.Tensor,
    codes: torch.Tensor,
    token_slots: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    plane_weights: Sequence[int],
    sink: int,
    recent: int,
    scales: torch.Tensor | None = None,
    scale_bits: int = 0,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Score tokens by the weighted agreement of the query planes with the key's code.

    Score of (request b, KV head h, token t) = sum over the planes p of
    ``plane_weights[p] * (r - hamming(q_p, k))``, an integer A in ``[0, M]``; with scales it is
    ``((2 * A - M) * scale + M * (2**scale_bits - 1)) >> shift`` (`score_shift`). A bias of the
    token's distance ``seq_len - 1 - t`` is added, and less than 0 becomes 0. Tokens with
    ``t < sink`` or ``t >= seq_len - recent`` get one more than the highest.

    Arguments are trusted, but for the lengths: `hata_kernels.rank.rank` checks them.

    Parameters
    ----------
    q_codes : torch.Tensor
        int32 ``[bs, kv_heads * P, words]``, contiguous; plane p of KV head h is row ``h * P + p``.
    codes : torch.Tensor
        int32 ``[slots, kv_heads, words]``, contiguous, on the CPU.
    token_slots : torch.Tensor
        int32 ``[bs, width]``; row b lists the slots of request b in position order.
    seq_lens : torch.Tensor
        int32 or int64 ``[bs]``, tokens of each request, the current one included; at most width.
    plane_weights : sequence of int
        Weight of each of the P planes: all 1 for a group of symmetric codes, ``2**p`` for the bits
        of a quantised query.
    sink, recent : int
        How many first and last tokens are always kept.
    scales : torch.Tensor, optional
        ``[slots, kv_heads]``, contiguous: uint8, or int16 that holds the low 16 bits.
    scale_bits : int
        Bits of a scale: 8 or 16, 0 without scales.
    bias : torch.Tensor, optional
        int32 ``[bs, kv_heads, DISTANCES]``, contiguous, none above 0: by half octave of the
        distance (`hata_kernels.score.distance`), what a query's scores gain.

    Returns
    -------
    torch.Tensor
        float32 ``[bs, kv_heads, width]``, whole numbers; 0 beyond the lengths.

    Raises
    ------
    ValueError
        When a length is not 1 to the table's width.
    """
    (_, kv_heads, words), (batch, width) = codes.shape, token_slots.shape
    full = full_score(plane_weights, words * WORD_BITS)
    forced = score_levels(plane_weights, words * WORD_BITS, scale_bits) - 1
    weights = torch.tensor(plane_weights).unsqueeze(1)
    queries = q_codes.view(batch, kv_heads, len(plane_weights), 1, words)
    out = torch.zeros(batch, kv_heads, width)
    for row, length in enumerate(expect_lengths("seq_lens", seq_lens, width)):
        keys = codes.index_select(0, token_slots[row, :length]).transpose(0, 1).unsqueeze(1)
        # numpy has the processor's popcount, and PyTorch has none. Unsigned, because it counts the
        # bits of the absolute value of signed integers.
        differing = np.bitwise_count((keys ^ queries[row]).numpy().view(np.uint32))
        scores = full - (torch.from_numpy(differing).sum(dim=-1) * weights).sum(dim=1)
        if scales is not None:
            factors = scales.index_select(0, token_slots[row, :length]).T.int()
            factors &= 2**scale_bits - 1  # int16 is read as unsigned
            scores = scaled_scores(2 * scores - full, factors, full, scale_bits)
        if bias is not None:
            bucket = distance_bucket(torch.arange(length - 1, -1, -1))
            scores = (scores + bias[row].index_select(1, bucket)).clamp_min(0)
        out[row, :, :length] = scores
        force(out[row, :, :length], sink, recent, forced)
    return out


def force(scores: torch.Tensor, sink: int, recent: int, value: float) -> None:
    """Write ``value`` to the sink and recent tokens of one request's scores ``[heads, length]``."""
    length = scores.shape[1]
    scores[:, :sink] = value
    scores[:, max(0, length - recent) :] = value
