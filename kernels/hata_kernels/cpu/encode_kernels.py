"""Compiled encoders of a decode step: projections, which become bits, levels and scales."""

from __future__ import annotations

import numpy as np
from numba import njit

from ..bits import WORD_BITS
from ..score.distance import LEAST
from .compiling import FLAGS
from .numbers import load


@njit(**FLAGS)
def _project(x, weight, out):
    """Add ``x @ weight`` to out, four rows at a time: out is read and written once for them."""
    rows, columns = weight.shape
    whole = rows // 4 * 4
    for i in range(0, whole, 4):
        a, b, c, d = x[i], x[i + 1], x[i + 2], x[i + 3]
        for j in range(columns):
            out[j] += (
                a * weight[i, j]
                + b * weight[i + 1, j]
                + c * weight[i + 2, j]
                + d * weight[i + 3, j]
            )
    for i in range(whole, rows):
        for j in range(columns):
            out[j] += x[i] * weight[i, j]


@njit(**FLAGS)
def _pack_signs(numbers, out):
    for w in range(len(out)):
        word = np.uint32(0)
        for j in range(WORD_BITS):
            word |= np.uint32(numbers[w * WORD_BITS + j] > 0) << np.uint32(j)
        out[w] = np.int32(word)


@njit(**FLAGS)
def _pack_levels(numbers, unit, out):
    """Planes of a quantised vector: `AsymmetricEncoder.query_levels`; returns its step."""
    planes, words = out.shape
    size = np.float32(0)
    for j in range(len(numbers)):
        size += numbers[j] * numbers[j]
    rms = np.sqrt(size / np.float32(len(numbers)))
    step = np.float32(unit) * (np.float32(1) if rms == 0 else rms)
    half = np.float32(1 << (planes - 1))
    out[:] = 0
    for w in range(words):
        for j in range(WORD_BITS):
            level = np.floor(numbers[w * WORD_BITS + j] / step)
            level = np.int32(min(max(level, -half), half - np.float32(1)) + half)
            for p in range(planes):
                out[p, w] |= (level >> p & 1) << j
    return step


@njit(**FLAGS)
def _write_bias(score_bias, step, out):
    """Round a bias by distance to whole scores: `hata_kernels.score.distance.whole_bias`."""
    for i in range(len(score_bias)):
        whole = np.floor(score_bias[i] / step + np.float32(0.5))
        out[i] = np.int32(max(whole, np.float32(LEAST)))


@njit(**FLAGS)
def _write_scale(size, step, slot, head, heads, scales):
    """Round a key's size to whole steps: `Encoder.key_scales`."""
    width = scales.shape[1] // heads
    most = np.float32((1 << (8 * width)) - 1)
    scale = np.int64(min(max(np.floor(size / step + np.float32(0.5)), np.float32(0)), most))
    for byte in range(width):
        scales[slot, head * width + byte] = scale >> (8 * byte) & 255


@njit(**FLAGS)
def encode_linear(q, keys, kind, weight, codes, slots, scales, steps, ranked, planes):
    """Encode the keys and queries of a step as `LinearEncoder` does.

    Sums may round otherwise: a bit whose projection is within rounding of zero may differ.

    Parameters
    ----------
    q, keys : uint16 [T, Hq, D or 2 * D] and [S, Hkv, same]
        Words of numbers of one of `KINDS`.
    kind : int
    weight : float32 [Hkv, D, r]
    codes : int32 [S, Hkv, r / 32]
        Written at the slots.
    slots : int64 [any]
        Of the step's keys.
    scales : uint8 [S, Hkv * bytes]
        Written as well, where there are steps.
    steps : float32 [Hkv], or [0]
    ranked : bool [T]
        Of which rows the queries are needed.
    planes : int32 [T, Hkv, G, r / 32]
        Written for these: the queries' codes.
    """
    heads, dim, bits = weight.shape
    group = planes.shape[2]
    numbers, x = np.empty(bits, np.float32), np.empty(dim, np.float32)
    for h in range(heads):
        for slot in slots:
            load(keys, slot, h, kind, x)
            numbers[:] = 0
            _project(x, weight[h], numbers)
            _pack_signs(numbers, codes[slot, h])
            if len(steps) > 0:
                norm = np.float32(0)
                for d in range(dim):
                    norm += x[d] * x[d]
                _write_scale(np.sqrt(norm), steps[h], slot, h, heads, scales)
        for t in np.flatnonzero(ranked):
            for g in range(group):
                load(q, t, h * group + g, kind, x)
                numbers[:] = 0
                _project(x, weight[h], numbers)
                _pack_signs(numbers, planes[t, h, g])


@njit(**FLAGS)
def encode_asymmetric(
    q,
    keys,
    kind,
    key_weight,
    key_bias,
    residual_weight,
    query_weight,
    query_bias,
    unit,
    score_bias,
    codes,
    slots,
    scales,
    steps,
    ranked,
    planes,
    biases,
):
    """Encode the keys and queries of a step as `AsymmetricEncoder` does.

    Sums may round otherwise: a bit or a level within rounding of the next may be the next.

    Parameters are those of `encode_linear`, with the weights of `AsymmetricEncoder`
    (``residual_weight [0, 0, 0]`` for one stage), the size of a level where the rms is 1, its
    ``score_bias [Hkv, DISTANCES]`` or ``[0, 0]``, ``planes [T, Hkv, B, r / 32]``, and
    ``biases [T, Hkv, DISTANCES]`` of `Queries`, written where there is such a bias.
    """
    heads, dim, bits = key_weight.shape
    size = query_weight.shape[1]
    first = bits if residual_weight.size == 0 else residual_weight.shape[1]
    numbers, signs = np.empty(bits, np.float32), np.empty(first, np.float32)
    x, queries = np.empty(dim, np.float32), np.empty(size, np.float32)
    for h in range(heads):
        for slot in slots:
            load(keys, slot, h, kind, x)
            numbers[:] = key_bias[h]
            _project(x, key_weight[h], numbers)
            if len(steps) > 0:
                mean = np.float32(0)
                for j in range(first):
                    mean += abs(numbers[j])
                _write_scale(mean / np.float32(first), steps[h], slot, h, heads, scales)
            if first < bits:
                for j in range(first):
                    signs[j] = np.float32(1) if numbers[j] > 0 else np.float32(-1)
                _project(signs, residual_weight[h], numbers[first:])
            _pack_signs(numbers, codes[slot, h])
        for t in np.flatnonzero(ranked):
            for g in range(size // dim):
                member = h * (size // dim) + g
                load(q, t, member, kind, queries[g * dim : (g + 1) * dim])
            numbers[:] = query_bias[h]
            _project(queries, query_weight[h], numbers)
            step = _pack_levels(numbers, unit, planes[t, h])
            if len(score_bias) > 0:
                _write_bias(score_bias[h], step, biases[t, h])
