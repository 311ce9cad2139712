"""CPU scores: weighted hamming agreement of codes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..bits import WORD_BITS
from ..checks import expect_lengths, expect_tensor
from .arguments import check_codes, check_rows
from .levels import full_score, scaled_scores, score_dtype, score_levels


def vote_planes(queries: torch.Tensor, weights: Sequence[int]) -> list[tuple[int, torch.Tensor]]:
    """Merge query planes into fewer words with the same summed, weighted hamming distance.

    For three planes a, b, c of equal weight and any key k, bit by bit, ``(k^a) + (k^b) + (k^c)``
    equals ``(k ^ (a^b^c)) + 2 * (k ^ majority(a, b, c))``: a full adder whose outputs both flip
    when all inputs flip. Merging three planes of equal weight until none are left turns the G
    popcounts per key word of a group of equal weights into about log2(G) + 1, once per query
    instead of once per key. Weights that all differ stay as they are.

    Parameters
    ----------
    queries : torch.Tensor
        int32 ``[..., P, words]``.
    weights : sequence of int
        Weight of each of the P planes.

    Returns
    -------
    list of (int, torch.Tensor)
        Weight and int32 ``[..., words]`` of each merged plane; the sum of weights stays.
    """
    pending = list(zip(weights, queries.unbind(-2), strict=True))
    planes = []
    while pending:
        weight = min(weight for weight, _ in pending)
        same = [query for other, query in pending if other == weight]
        pending = [entry for entry in pending if entry[0] != weight]
        while len(same) >= 3:
            a, b, c = same.pop(), same.pop(), same.pop()
            same.append(a ^ b ^ c)
            pending.append((2 * weight, (a & b) | ((a ^ b) & c)))
        planes += [(weight, query) for query in same]
    return planes


def score_naive(
    q_codes: torch.Tensor,
    codes: torch.Tensor,
    token_slots: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    plane_weights: Sequence[int],
    sink: int,
    recent: int,
    out: torch.Tensor,
    scales: torch.Tensor | None = None,
    scale_bits: int = 0,
) -> torch.Tensor:
    """Score tokens by the weighted agreement of the query planes with the key's code.

    Score of (request b, KV head h, token t) = sum over the planes p of
    ``plane_weights[p] * (r - hamming(q_p, k))``, an integer A in ``[0, M]``; with scales it is
    ``((2 * A - M) * scale + M * (2**scale_bits - 1)) >> shift`` (`score_shift`). Tokens with
    ``t < sink`` or ``t >= seq_len - recent`` get one more than the highest.

    Parameters
    ----------
    q_codes : torch.Tensor
        int32 ``[bs, kv_heads * P, words]``, contiguous; plane p of KV head h is row ``h * P + p``.
    codes : torch.Tensor
        int32 ``[slots, kv_heads, words]``, contiguous, on the CPU.
    token_slots : torch.Tensor
        int32 ``[bs, at least width]``; row b lists the slots of request b in position order.
    seq_lens : torch.Tensor
        int32 or int64 ``[bs]``, tokens of each request, the current one included; at most width.
    plane_weights : sequence of int
        Weight of each of the P planes: all 1 for a group of symmetric codes, ``2**p`` for the bits
        of a quantised query.
    sink, recent : int
        How many first and last tokens are always kept.
    out : torch.Tensor
        ``[bs, kv_heads, width]``, contiguous, of dtype ``score_dtype(plane_weights, r,
        scale_bits)``. Only ``out[b, :, :seq_lens[b]]`` is written.
    scales : torch.Tensor, optional
        ``[slots, kv_heads]``, contiguous: uint8, or int16 that holds the low 16 bits.
    scale_bits : int
        Bits of a scale: 8 or 16, 0 without scales.

    Returns
    -------
    torch.Tensor
        ``out``.

    Raises
    ------
    ValueError
        When a shape, dtype, device, ``plane_weights``, ``scale_bits``, ``sink`` or ``recent`` does
        not fit.
    """
    words = check_codes(q_codes, codes, plane_weights, scales, scale_bits)
    slots, kv_heads, _ = codes.shape
    check_rows(token_slots, seq_lens, q_codes.shape[0], kv_heads, sink, recent, out)
    dtype = score_dtype(plane_weights, words * WORD_BITS, scale_bits)
    expect_tensor("out", out, dtypes=(dtype,), device=codes.device)
    full = full_score(plane_weights, words * WORD_BITS)
    forced = score_levels(plane_weights, words * WORD_BITS, scale_bits) - 1
    # numpy, because its bitwise_count is the processor's popcount and PyTorch has none (shifts and
    # masks over tensors took twice as long), and because these steps of tens of microseconds lose
    # more than they gain when PyTorch spreads them over busy cores. Unsigned, because numpy counts
    # the bits of the absolute value of signed integers; two words at a time where they pair up.
    wide = np.uint64 if words % 2 == 0 else np.uint32
    flat = codes.view(slots, kv_heads * words).numpy().view(wide)
    table = token_slots.numpy()
    sums = np.int16 if full < 2**15 else np.int32
    for row, length in enumerate(expect_lengths("seq_lens", seq_lens, out.shape[2])):
        # Word-major, so that every step below runs over contiguous vectors of tokens.
        keys = np.ascontiguousarray(flat.take(table[row, :length], axis=0).T)
        distance = np.zeros((kv_heads, length), dtype=sums)
        planes = q_codes[row].view(kv_heads, len(plane_weights), words)
        for weight, query in vote_planes(planes, plane_weights):
            columns = query.contiguous().numpy().view(wide).reshape(-1, 1)
            differing = np.bitwise_count(keys ^ columns)
            differing = differing.reshape(kv_heads, -1, length).sum(axis=1, dtype=sums)
            distance += weight * differing
        scores = out[row, :, :length]
        agreement = torch.from_numpy(full - distance)
        if scales is not None:
            factors = scales.index_select(0, token_slots[row, :length]).T.int()
            factors &= 2**scale_bits - 1  # int16 is read as unsigned
            agreement = scaled_scores(2 * agreement.int() - full, factors, full, scale_bits)
        scores.copy_(agreement)
        force(scores, sink, recent, forced)
    return out


def force(scores: torch.Tensor, sink: int, recent: int, value: float) -> None:
    """Write ``value`` to the sink and recent tokens of one request's scores ``[heads, length]``."""
    length = scores.shape[1]
    scores[:, :sink] = value
    scores[:, max(0, length - recent) :] = value
