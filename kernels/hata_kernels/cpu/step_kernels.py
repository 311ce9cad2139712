"""The compiled call of a sparse layer: encode the step, rank the tokens of every row, attend.

A row is a request; each of its KV heads selects for itself.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ..attend import RATIOS
from ..tally import ATTENDED, CONTEXT, ENCODED, SIZE, STEPS
from .compiling import FLAGS, compiled
from .encode_kernels import encode_asymmetric, encode_linear
from .numbers import exp, load, prefetch, store
from .rank_kernels import add_bias, gather_codes, pack_planes, scale_scores, score, take

#: Tokens whose codes stay in the processor's first cache while they are compared with all planes.
BLOCK = 256

#: So many of a head's keys and values are asked for before any is needed: they are all over the
#: memory. More would push each other out of the caches.
ASKED = 256

#: Logits that are lower than a row's largest by more than this weigh less than the rounding of the
#: sum, and would be slow to multiply by where they are denormal.
LEAST = np.float32(-60)

#: Who encodes the queries.
GIVEN, LINEAR, ASYMMETRIC = 0, 1, 2

#: What `decode_layer` returns.
DONE, MISFIT, BAD_SLOT = 0, 1, 2

# Sums of products in any order.
ANY_ORDER = {**FLAGS, "fastmath": {"contract", "reassoc"}}


@njit(**FLAGS)
def _prefetch_row(words, slot, head):
    size = words.shape[2] * words.itemsize
    place = words.ctypes.data + (np.int64(slot) * words.shape[1] + head) * size
    for byte in range(0, size, 64):
        prefetch(place + byte)


@njit(**ANY_ORDER)
def _attend(q, keys, values, kind, row, head, slots, scale, out, value_sum):
    """Attention of the query heads of one row and KV head over some slots, in float32.

    Parameters
    ----------
    q, keys, values, kind, scale
        As in `decode_layer`.
    row, head : int
    slots : int32 [n]
    out : float32 [G, D]
    value_sum : float32 [D], or [0]
        Gets the sum of the values.
    """
    group, dim = out.shape
    queries, token = np.empty((group, dim), np.float32), np.empty(dim, np.float32)
    weights = np.empty((group, len(slots)), np.float32)
    for g in range(group):
        load(q, row, head * group + g, kind, token)
        for d in range(dim):
            queries[g, d] = token[d] * np.float32(scale)
    for i in range(len(slots)):
        load(keys, slots[i], head, kind, token)
        for g in range(group):
            logit = np.float32(0)
            for d in range(dim):
                logit += queries[g, d] * token[d]
            weights[g, i] = logit
    for g in range(group):
        top, total = weights[g, 0], np.float32(0)
        for i in range(len(slots)):
            top = max(top, weights[g, i])
        for i in range(len(slots)):
            below = weights[g, i] - top
            weights[g, i] = exp(max(below, LEAST)) if below > LEAST else np.float32(0)
            total += weights[g, i]
        for i in range(len(slots)):
            weights[g, i] /= total
    out[:] = 0
    for i in range(len(slots)):
        load(values, slots[i], head, kind, token)
        for g in range(group):
            weight = weights[g, i]
            for d in range(dim):
                out[g, d] += weight * token[d]
        for d in range(len(value_sum)):
            value_sum[d] += token[d]


@njit(**FLAGS)
def _mix(out, selected, total, weights, length, count):
    """Mix the mean of the values left out into attention: `hata_kernels.attend.left_out`.

    Parameters
    ----------
    out : float32 [G, D]
        Changed.
    selected, total : float32 [D]
        Sums of the values that are selected, and of all.
    weights : float32 [G, RATIOS]
    length, count : int
        Tokens of the row, and fewer that are selected.
    """
    place = min(np.log2(length / count), RATIOS - 1.0)
    low = min(np.int64(place), RATIOS - 2)
    for g in range(len(out)):
        first = weights[g, low]
        weight = first + (weights[g, low + 1] - first) * np.float32(place - low)
        for d in range(out.shape[1]):
            mean = (total[d] - selected[d]) / np.float32(length - count)
            out[g, d] += weight * (mean - out[g, d])


@njit(**FLAGS)
def _rank(planes, biases, codes, scales, slots, budget, numbers, selected):
    """Select the best tokens of one row, for each of its KV heads: as `rank_naive` does.

    Parameters
    ----------
    planes : int32 [Hkv, P, words]
    biases : int32 [Hkv, DISTANCES], or [Hkv, 0]
    codes, scales
        As in `decode_layer`.
    slots : int32 [length]
        More tokens than the budget.
    budget : int
    numbers : tuple
        From shifts to recent of `decode_layer`.
    selected : int32 [Hkv, budget]
        Written.
    """
    shifts, full, levels, scale_shift, sink, recent = numbers
    heads, count, words = planes.shape
    length, pairs = len(slots), (words + 1) // 2
    packed, merged = np.empty((heads, count, pairs), np.uint64), np.empty((heads, count), np.int64)
    left = np.empty(heads, np.int64)
    scores, counts = np.empty((heads, length), np.int32), np.empty((heads, levels), np.int32)
    block, words_of = np.empty(BLOCK, np.uint64), np.empty((heads * pairs, BLOCK), np.uint64)
    first = min(sink, length)
    last = max(length - recent, first)
    need = budget - first - (length - last)
    if need > 0:
        counts[:] = 0
        for h in range(heads):
            left[h] = pack_planes(planes[h], shifts, packed[h], merged[h])
        for begin in range(first, last, BLOCK):
            end = min(begin + BLOCK, last)
            some = block[: end - begin]
            for i in range(len(some)):
                some[i] = np.uint64(np.uint32(slots[begin + i]))
            gather_codes(codes, some, words_of)
            for h in range(heads):
                part = scores[h, begin:end]
                part[:] = full
                own = words_of[h * pairs : (h + 1) * pairs]
                score(own, packed[h], merged[h], left[h], part)
                if scales.size > 0:
                    scale_scores(scales, some, h, heads, full, scale_shift, part)
                if biases.size > 0:
                    add_bias(biases[h], length - begin, part)
                for i in range(len(part)):
                    counts[h, np.uint64(part[i])] += 1
    for h in range(heads):
        take(slots, scores[h], counts[h], first, last, need, selected[h])


@compiled(
    "int64(uint16[:,:,:], int64[::1], int32[:,:,:,::1], int32[:,:,::1], int32[:,:,::1], "
    "uint16[:,:,::1], "
    "int32[:,::1], int64[::1], int32[::1], int64, uint16[:,:,::1], uint16[:,:,::1], "
    "int32[:,:,::1], uint8[:,::1], int64, float32[:,:,::1], float32[:,::1], "
    "float32[:,:,::1], float32[:,:,::1], float32[:,::1], float64, float32[:,::1], float32[::1], "
    "int64[::1], int64, int64, int64, int64, int64, float64, int64[::1], "
    "float32[:,:,::1], int64[::1], float32[:,::1])"
)
def decode_layer(
    q,
    new_slots,
    planes,
    biases,
    selected,
    out,
    table,
    lengths,
    budgets,
    kind,
    keys,
    values,
    codes,
    scales,
    method,
    key_weight,
    key_bias,
    residual_weight,
    query_weight,
    query_bias,
    unit,
    score_bias,
    steps,
    shifts,
    full,
    levels,
    scale_shift,
    sink,
    recent,
    scale,
    tally,
    sums,
    requests,
    mean_weights,
):
    """Compiled part of `SparseLayer`; says how it went.

    Rows of no more tokens than their budget select these and are not attended: `out` stays.

    Parameters
    ----------
    q : uint16 [bs, Hq, D or 2 * D]
        Words of numbers of one of `KINDS`, as keys and values.
    new_slots : int64 [any]
        Slots of keys that are to be encoded.
    planes : int32 [bs, Hkv, P, words]
        Written but where `method` says that they are given. Anything where no row is ranked, as
        `out`.
    biases : int32 [bs, Hkv, DISTANCES], or [bs, Hkv, 0] without `score_bias`
        Written, and anything, like planes.
    selected : int32 [bs, Hkv, k_max]
        Written: what `rank_naive` says.
    out : uint16 [bs, Hq, D or 2 * D]
        Written.
    table : int32 [bs, width]
        Slots in position order.
    lengths, budgets : int64 and int32 [bs]
    kind : int
    keys, values : uint16 [slots, Hkv, D or 2 * D]
    codes : int32 [slots, Hkv, words]
    scales : uint8 [slots, Hkv * bytes], or [0, 0]
    method : int
        `GIVEN`, where no key is new, `LINEAR` or `ASYMMETRIC`.
    key_weight, key_bias, residual_weight, query_weight, query_bias, unit, score_bias, steps
        As in `encode_asymmetric`; of `LINEAR` the key weight and the steps count.
    shifts : int64 [P]
        Logarithms of the planes' weights.
    full, levels, scale_shift : int
        M, the number of scores, and the shift of scaled ones: `hata_kernels.score.levels`.
    sink, recent : int
    scale : float
        Softmax scale.
    tally : int64 [SIZE], or [0]
        `hata_kernels.tally`; added to, where there is one. No row is padding.
    sums, requests, mean_weights : float32 [any, Hkv, D], int64 [bs] and float32 [Hq, RATIOS]
        Of `LeftOut`, or of no requests: then nothing is mixed in.
    """
    batch, heads, size = len(table), codes.shape[1], keys.shape[2]
    group, ranked = q.shape[1] // heads, lengths > budgets
    if q.shape != (batch, heads * group, size) or group == 0:
        return MISFIT
    if ranked.any() and out.shape != q.shape:
        return MISFIT
    if ranked.any() and planes.shape != (batch, heads, len(shifts), codes.shape[2]):
        return MISFIT
    if ranked.any() and biases.shape != (batch, heads, score_bias.shape[1]):
        return MISFIT
    if selected.shape[:2] != (batch, heads):
        return MISFIT
    if method == ASYMMETRIC and query_weight.shape[1] * (2 if kind == 2 else 1) != group * size:
        return MISFIT
    if method == LINEAR and group != len(shifts):
        return MISFIT
    if len(tally) not in (0, SIZE):
        return MISFIT
    dim = size // 2 if kind == 2 else size
    mean = len(requests) > 0
    if mean:
        if len(requests) != batch or sums.shape[1:] != (heads, dim):
            return MISFIT
        if mean_weights.shape != (heads * group, RATIOS):
            return MISFIT
        if requests.min() < 0 or requests.max() >= len(sums):
            return MISFIT
    for slot in new_slots:
        if not 0 <= slot < len(codes):
            return BAD_SLOT
    for b in range(batch):
        largest = np.uint32(0)
        for i in range(lengths[b]):
            largest = max(largest, np.uint32(table[b, i]))
        if largest >= len(codes):
            return BAD_SLOT
    where = (codes, new_slots, scales, steps, ranked, planes)
    if method == LINEAR:
        encode_linear(q, keys, kind, key_weight, *where)
    elif method == ASYMMETRIC:
        of_keys = (key_weight, key_bias, residual_weight)
        of_queries = (query_weight, query_bias, unit, score_bias)
        encode_asymmetric(q, keys, kind, *of_keys, *of_queries, *where, biases)
    numbers = (shifts, full, levels, scale_shift, sink, recent)
    attended = np.empty((group, dim), np.float32)
    newest, selected_sum = np.empty(dim, np.float32), np.zeros(dim if mean else 0, np.float32)
    if len(tally) > 0:
        tally[ENCODED] += len(new_slots)
        tally[STEPS] += 1
    for b in range(batch):
        length, budget = lengths[b], np.int64(budgets[b])
        if len(tally) > 0:
            tally[CONTEXT] += length
            tally[ATTENDED] += min(length, budget)
        for h in range(heads if mean else 0):
            load(values, table[b, length - 1], h, kind, newest)
            sums[requests[b], h] += newest
        selected[b, :, min(length, budget) :] = -1
        if not ranked[b]:
            for h in range(heads):
                selected[b, h, :length] = table[b, :length]
            continue
        own = selected[b, :, :budget]
        _rank(planes[b], biases[b], codes, scales, table[b, :length], budget, numbers, own)
        for h in range(heads):
            for slot in own[h, :ASKED]:
                _prefetch_row(keys, slot, h)
                _prefetch_row(values, slot, h)
        for h in range(heads):
            selected_sum[:] = 0
            _attend(q, keys, values, kind, b, h, own[h], scale, attended, selected_sum)
            if mean:
                weights = mean_weights[h * group : (h + 1) * group]
                _mix(attended, selected_sum, sums[requests[b], h], weights, length, budget)
            for g in range(group):
                store(attended[g], kind, out[b, h * group + g])
    return DONE
