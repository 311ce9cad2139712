"""CPU scores: weighted hamming agreement of codes, and what scorers share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..bits import WORD_BITS
from ..checks import expect, expect_table, expect_tensor

LENGTHS = (torch.int32, torch.int64)
SCALE_DTYPES = {8: torch.uint8, 16: torch.int16}

# Scaled scores, forced ones included, stay below it: float16 is exact on integers up to there.
HALF_EXACT = 2048


def full_score(plane_weights: Sequence[int], bits: int) -> int:
    """Return M, the score of a token that agrees in every bit of every plane."""
    return sum(plane_weights) * bits


def score_shift(full: int, scale_bits: int) -> int:
    """Return by how many bits scaled scores are shifted to the right.

    Parameters
    ----------
    full : int
        M of `full_score`.
    scale_bits : int
        Bits of a scale, 8 or 16.

    Returns
    -------
    int
        The smallest shift that leaves ``2 * M * (2**scale_bits - 1)`` below 2047.
    """
    highest = 2 * full * (2**scale_bits - 1)
    return next(shift for shift in range(64) if highest >> shift < HALF_EXACT - 1)


def score_dtype(plane_weights: Sequence[int], bits: int, scale_bits: int = 0) -> torch.dtype:
    """Return the dtype that holds every score exactly.

    Parameters
    ----------
    plane_weights : sequence of int
        Weight of each query plane of a KV head.
    bits : int
        Bits per code, r.
    scale_bits : int
        Bits of the keys' scales, 0 for none.

    Returns
    -------
    torch.dtype
        float16 while no score exceeds 2048 (float16 is exact on integers up to 2048), else float32.
    """
    levels = score_levels(plane_weights, bits, scale_bits)
    return torch.float16 if levels <= HALF_EXACT + 1 else torch.float32


def score_levels(plane_weights: Sequence[int], bits: int, scale_bits: int = 0) -> int:
    """Return how many values a score can take: 0 to the highest, and one more if forced.

    Parameters are those of `score_dtype`; the highest is ``M = r * sum(plane_weights)``, with
    scales ``2 * M * (2**scale_bits - 1) >> shift``.
    """
    full = full_score(plane_weights, bits)
    if scale_bits == 0:
        return full + 2
    return (2 * full * (2**scale_bits - 1) >> score_shift(full, scale_bits)) + 2


def scaled_scores(
    signed: torch.Tensor, scales: torch.Tensor, full: int, scale_bits: int
) -> torch.Tensor:
    """Weight signed agreement by the keys' scales, as small integers that are not negative.

    Parameters
    ----------
    signed : torch.Tensor
        int32, ``2 * agreement - M``: minus M to M.
    scales : torch.Tensor
        Integers of 0 to ``2**scale_bits - 1``, of a shape that broadcasts.
    full : int
        M.
    scale_bits : int
        8 or 16.

    Returns
    -------
    torch.Tensor
        ``(signed * scale + M * (2**scale_bits - 1)) >> score_shift(M, scale_bits)``; int32, or
        int64 where the product needs it.
    """
    most = 2**scale_bits - 1
    dtype = torch.int32 if 2 * full * most < 2**31 else torch.int64
    return (signed.to(dtype) * scales.to(dtype) + full * most) >> score_shift(full, scale_bits)


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


def check_score(
    q_codes: torch.Tensor,
    codes: torch.Tensor,
    token_slots: torch.Tensor,
    seq_lens: torch.Tensor,
    plane_weights: Sequence[int],
    sink: int,
    recent: int,
    out: torch.Tensor,
    scales: torch.Tensor | None,
    scale_bits: int,
) -> int:
    """Check the arguments of `score_naive` and of its Triton counterpart; return words per code.

    Raises
    ------
    ValueError
        As `check_codes`, and when ``sink``, ``recent`` or another tensor does not fit.
    """
    words = check_codes(q_codes, codes, plane_weights, scales, scale_bits)
    check_rows(token_slots, seq_lens, q_codes.shape[0], codes.shape[1], sink, recent, out)
    dtype = score_dtype(plane_weights, words * WORD_BITS, scale_bits)
    expect_tensor("out", out, dtypes=(dtype,), device=codes.device)
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


def host_lengths(seq_lens: torch.Tensor, scores: torch.Tensor) -> list[int]:
    """Return CPU ``seq_lens`` as integers.

    Raises
    ------
    ValueError
        When a length is below 1 or above the width of ``scores``, ``[bs, kv_heads, width]``.
    """
    lengths = seq_lens.tolist()
    fits = all(1 <= length <= scores.shape[2] for length in lengths)
    expect(fits, "seq_lens", f"1 to {scores.shape[2]}", lengths)
    return lengths


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
    words = check_score(
        q_codes, codes, token_slots, seq_lens, plane_weights, sink, recent, out, scales, scale_bits
    )
    slots, kv_heads, _ = codes.shape
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
    for row, length in enumerate(host_lengths(seq_lens, out)):
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
