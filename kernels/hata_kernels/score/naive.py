"""CPU scores: hamming agreement of codes, and the exact attention they stand in for."""

from __future__ import annotations

import numpy as np
import torch

from ..bits import WORD_BITS
from ..checks import expect, expect_tensor

LENGTHS = (torch.int32, torch.int64)


def score_dtype(group: int, bits: int) -> torch.dtype:
    """Return the dtype that holds every score exactly.

    Parameters
    ----------
    group : int
        Query heads per KV head, G.
    bits : int
        Bits per code, r.

    Returns
    -------
    torch.dtype
        float16 while ``G * r + 1 <= 2048`` (float16 is exact on integers up to 2048), else float32.
    """
    return torch.float16 if group * bits + 1 <= 2048 else torch.float32


def score_levels(group: int, bits: int) -> int:
    """Return how many values a score can take: 0 to ``G * r``, and ``G * r + 1`` if forced."""
    return group * bits + 2


def check_score(
    q_codes: torch.Tensor,
    codes: torch.Tensor,
    token_slots: torch.Tensor,
    seq_lens: torch.Tensor,
    sink: int,
    recent: int,
    out: torch.Tensor,
) -> tuple[int, int]:
    """Check the arguments of `score_naive` and of its Triton counterpart.

    Returns
    -------
    tuple of int
        Query heads per KV head and words per code.

    Raises
    ------
    ValueError
        When a shape, dtype, device, ``sink`` or ``recent`` does not fit.
    """
    device = codes.device
    expect_tensor("codes", codes, shape=(None, None, None), dtypes=(torch.int32,), contiguous=True)
    _, kv_heads, words = codes.shape
    expect_tensor(
        "q_codes",
        q_codes,
        shape=(None, None, words),
        dtypes=(torch.int32,),
        device=device,
        contiguous=True,
    )
    batch, q_heads, _ = q_codes.shape
    expect(q_heads % kv_heads == 0, "q_codes.shape[1]", f"a multiple of {kv_heads}", q_heads)
    group = q_heads // kv_heads
    check_rows(token_slots, seq_lens, batch, kv_heads, sink, recent, out)
    expect_tensor("out", out, dtypes=(score_dtype(group, words * WORD_BITS),), device=device)
    return group, words


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
    expect_tensor(
        "token_slots", token_slots, shape=(batch, None), dtypes=(torch.int32,), device=out.device
    )
    expect(token_slots.stride(1) == 1, "token_slots.stride(1)", 1, token_slots.stride(1))
    expect(
        token_slots.shape[1] >= out.shape[2],
        "token_slots.shape[1]",
        f"at least out.shape[2] = {out.shape[2]}",
        token_slots.shape[1],
    )
    expect_tensor("seq_lens", seq_lens, shape=(batch,), dtypes=LENGTHS, device=out.device)


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


def vote_planes(queries: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
    """Merge a group of query codes into fewer words with the same summed hamming distance.

    For three queries a, b, c and any key k, bit by bit, ``(k^a) + (k^b) + (k^c)`` equals
    ``(k ^ (a^b^c)) + 2 * (k ^ majority(a, b, c))``: a full adder whose outputs both flip when all
    inputs flip. Merging three queries of equal weight until none are left turns G popcounts per
    key word into about log2(G) + 1, once per query instead of once per key.

    Parameters
    ----------
    queries : torch.Tensor
        int32 ``[..., G, words]``.

    Returns
    -------
    list of (int, torch.Tensor)
        Weight and int32 ``[..., words]`` of each merged query; the weights sum to G.
    """
    pending = [(1, query) for query in queries.unbind(-2)]
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
    sink: int,
    recent: int,
    out: torch.Tensor,
) -> torch.Tensor:
    """Score tokens by the summed agreement of the group's query codes with the key's code.

    Score of (request b, KV head h, token t) = sum over the G query heads of r - hamming(q, k), an
    integer in ``[0, G * r]``; tokens with ``t < sink`` or ``t >= seq_len - recent`` get
    ``G * r + 1``.

    Parameters
    ----------
    q_codes : torch.Tensor
        int32 ``[bs, q_heads, words]``, contiguous.
    codes : torch.Tensor
        int32 ``[slots, kv_heads, words]``, contiguous, on the CPU.
    token_slots : torch.Tensor
        int32 ``[bs, at least width]``; row b lists the slots of request b in position order.
    seq_lens : torch.Tensor
        int32 or int64 ``[bs]``, tokens of each request, the current one included; at most width.
    sink, recent : int
        How many first and last tokens are always kept.
    out : torch.Tensor
        ``[bs, kv_heads, width]``, contiguous, of dtype ``score_dtype(G, r)``. Only
        ``out[b, :, :seq_lens[b]]`` is written.

    Returns
    -------
    torch.Tensor
        ``out``.

    Raises
    ------
    ValueError
        When a shape, dtype, device, ``sink`` or ``recent`` does not fit.
    """
    group, words = check_score(q_codes, codes, token_slots, seq_lens, sink, recent, out)
    slots, kv_heads, _ = codes.shape
    full = group * words * WORD_BITS
    expect(full < 2**15, "query heads per KV head times bits", "less than 32768", full)
    # numpy, because its bitwise_count is the processor's popcount and PyTorch has none (shifts and
    # masks over tensors took twice as long), and because these steps of tens of microseconds lose
    # more than they gain when PyTorch spreads them over busy cores. Unsigned, because numpy counts
    # the bits of the absolute value of signed integers.
    flat = codes.view(slots, kv_heads * words).numpy().view(np.uint32)
    table = token_slots.numpy()
    for row, length in enumerate(host_lengths(seq_lens, out)):
        # Word-major, so that every step below runs over contiguous vectors of tokens.
        keys = np.ascontiguousarray(flat.take(table[row, :length], axis=0).T)
        distance = np.zeros((kv_heads, length), dtype=np.int16)
        for weight, query in vote_planes(q_codes[row].view(kv_heads, group, words)):
            differing = np.bitwise_count(keys ^ query.numpy().view(np.uint32).reshape(-1, 1))
            differing = differing.reshape(kv_heads, words, length).sum(axis=1, dtype=np.int16)
            distance += weight * differing
        scores = out[row, :, :length]
        scores.copy_(torch.from_numpy(full - distance))
        force(scores, sink, recent, full + 1)
    return out


def exact_score_naive(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    token_slots: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    scale: float,
    sink: int,
    recent: int,
    out: torch.Tensor,
) -> torch.Tensor:
    """Score tokens by the attention the group really pays them: the ceiling of every selector.

    Score of (b, h, t) = sum over the G query heads of softmax over the request's tokens of
    ``scale * q . k``, in float32; forced tokens get +inf.

    Parameters
    ----------
    q : torch.Tensor
        ``[bs, q_heads, D]``, floating point.
    k_cache : torch.Tensor
        ``[slots, kv_heads, D]``, on the CPU.
    token_slots, seq_lens, sink, recent
        As in `score_naive`.
    scale : float
        Softmax scale.
    out : torch.Tensor
        float32 ``[bs, kv_heads, width]``, contiguous. Only ``out[b, :, :seq_lens[b]]`` is written.

    Returns
    -------
    torch.Tensor
        ``out``.

    Raises
    ------
    ValueError
        When a shape, dtype, device, ``sink`` or ``recent`` does not fit.
    """
    expect_tensor("k_cache", k_cache, shape=(None, None, None), device=torch.device("cpu"))
    _, kv_heads, dim = k_cache.shape
    expect_tensor("q", q, shape=(None, None, dim), device=k_cache.device)
    batch, q_heads, _ = q.shape
    expect(q_heads % kv_heads == 0, "q.shape[1]", f"a multiple of {kv_heads}", q_heads)
    check_rows(token_slots, seq_lens, batch, kv_heads, sink, recent, out)
    expect_tensor("out", out, dtypes=(torch.float32,), device=k_cache.device)
    queries = q.float().unflatten(1, (kv_heads, -1)) * scale
    for row, length in enumerate(host_lengths(seq_lens, out)):
        keys = k_cache.index_select(0, token_slots[row, :length]).float()
        logits = torch.bmm(queries[row], keys.permute(1, 2, 0))
        scores = out[row, :, :length]
        torch.sum(torch.softmax(logits, dim=-1), dim=1, out=scores)
        force(scores, sink, recent, float("inf"))
    return out


def force(scores: torch.Tensor, sink: int, recent: int, value: float) -> None:
    """Write ``value`` to the sink and recent tokens of one request's scores ``[heads, length]``."""
    length = scores.shape[1]
    scores[:, :sink] = value
    scores[:, max(0, length - recent) :] = value
