"""Compiled ranking of a decode step: planes, scores of a block of tokens, and the best of a row."""

from __future__ import annotations

import numpy as np
from numba import njit

from ..bits import WORD_BITS
from .compiling import FLAGS
from .numbers import as_bits, popcount


@njit(**FLAGS)
def pack_planes(planes, shifts, packed, merged):
    """Make as few planes as possible out of those given, two words in one of 64 bits.

    For three planes a, b, c of equal weight and any key k, bit by bit, ``(k^a) + (k^b) + (k^c)``
    equals ``(k ^ (a^b^c)) + 2 * (k ^ majority(a, b, c))``: a full adder whose outputs both flip
    when all inputs flip. So three planes become two, once per query instead of once per key.

    Parameters
    ----------
    planes : int32 [P, words]
    shifts : int64 [P]
        Logarithms of the planes' weights, which are powers of 2.
    packed : uint64 [P, pairs]
        Written.
    merged : int64 [P]
        Written: the shifts of these.

    Returns
    -------
    int
        How many there are.
    """
    count, words = planes.shape
    packed[:] = 0
    merged[:] = shifts
    for p in range(count):
        for w in range(words):
            word = np.uint64(np.uint32(planes[p, w]))
            packed[p, w // 2] |= word << np.uint64(WORD_BITS * (w % 2))
    a = 0
    while a < count:
        b = c = 0
        for other in range(a + 1, count):
            if merged[other] == merged[a]:
                if b > 0:
                    c = other
                    break
                b = other
        if c == 0:
            a += 1
            continue
        for w in range(packed.shape[1]):
            x, y, z = packed[a, w], packed[b, w], packed[c, w]
            packed[a, w] = x ^ y ^ z
            packed[b, w] = (x & y) | ((x ^ y) & z)
        merged[b] += 1
        count -= 1
        packed[c], merged[c] = packed[count], merged[count]
        a = 0
    return count


@njit(**FLAGS)
def gather_codes(codes, slots, keys):
    """Copy the codes of a block of tokens, word by word: ``keys[h * pairs + pair, token]``."""
    heads, words = codes.shape[1], codes.shape[2]
    if words % 2 == 0:
        wide = codes.view(np.uint64).reshape((len(codes), heads * words // 2))
        for i in range(len(slots)):
            # Unsigned, because Numba lets signed indices count from the end, at a price.
            for j in range(wide.shape[1]):
                keys[np.uint64(j), np.uint64(i)] = wide[slots[i], np.uint64(j)]
        return
    pairs = (words + 1) // 2
    for h in range(heads):
        for pair in range(pairs):
            for i in range(len(slots)):
                word = np.uint64(np.uint32(codes[slots[i], h, 2 * pair]))
                if pair < pairs - 1:
                    high = np.uint64(np.uint32(codes[slots[i], h, 2 * pair + 1]))
                    word |= high << np.uint64(WORD_BITS)
                keys[h * pairs + pair, i] = word


@njit(**FLAGS)
def score(keys, planes, shifts, count, scores):
    """Take weighted hamming distances off the scores of a block of tokens, for one KV head.

    Parameters
    ----------
    keys : uint64 [pairs, at least tokens]
    planes, shifts, count
        As `pack_planes` makes them.
    scores : int32 [tokens]
    """
    tokens = len(scores)
    for pair in range(keys.shape[0]):
        words = keys[pair]
        p = 0
        # Four planes at a time, as scores are read and written once for them.
        while p + 4 <= count:
            a, w = planes[p, pair], np.uint64(shifts[p])
            b, x = planes[p + 1, pair], np.uint64(shifts[p + 1])
            c, y = planes[p + 2, pair], np.uint64(shifts[p + 2])
            d, z = planes[p + 3, pair], np.uint64(shifts[p + 3])
            for i in range(tokens):
                scores[i] -= np.int32(
                    (popcount(words[i] ^ a) << w)
                    + (popcount(words[i] ^ b) << x)
                    + (popcount(words[i] ^ c) << y)
                    + (popcount(words[i] ^ d) << z)
                )
            p += 4
        while p < count:
            a, w = planes[p, pair], np.uint64(shifts[p])
            for i in range(tokens):
                scores[i] -= np.int32(popcount(words[i] ^ a) << w)
            p += 1


@njit(**FLAGS)
def scale_scores(scales, slots, head, heads, full, shift, scores):
    """Multiply agreements by the keys' scales: `hata_kernels.score.levels.scaled_scores`."""
    width = scales.shape[1] // heads
    most = (1 << (8 * width)) - 1
    for i in range(len(scores)):
        scale = np.int64(scales[slots[i], np.uint64(head * width)])
        if width == 2:
            scale |= np.int64(scales[slots[i], np.uint64(head * width + 1)]) << 8
        scores[i] = ((2 * np.int64(scores[i]) - full) * scale + full * most) >> shift


@njit(**FLAGS)
def add_bias(bias, left, scores):
    """Add a query's bias by distance to scores, which stay at 0 at least.

    Parameters
    ----------
    bias : int32 [DISTANCES]
    left : int
        Tokens of the context from the first of these on: its distance and one more.
    scores : int32 [tokens]
    """
    begin = 0
    while begin < len(scores):
        bucket = (as_bits(np.float32(left - begin)) >> 22) - 254
        # As many tokens as are left at the near end of this half octave are not of it.
        edge = (2 + (bucket & 1) << (bucket >> 1)) >> 1
        end = min(left - edge + 1, len(scores))
        own = bias[min(bucket, len(bias) - 1)]
        part = scores[begin:end]
        for i in range(len(part)):
            part[i] = max(part[i] + own, 0)
        begin = end


@njit(**FLAGS)
def take(slots, scores, counts, first, last, need, out):
    """Write the slots that one KV head keeps, in position order.

    Parameters
    ----------
    slots : int32 [at least last]
    scores : int32 [at least last]
        Those from first to last count.
    counts : int32 [levels]
        How many of them have which score.
    first, last : int
        Tokens before and from there on are kept, as far as there is room.
    need : int
        How many of those between are kept: the best, of equal ones the earlier.
    out : int32 [kept]
    """
    place = min(first, len(out))
    out[:place] = slots[:place]
    if need > 0:
        floor = len(counts) - 1
        while counts[floor] < need:
            need -= counts[floor]
            floor -= 1
        for i in range(first, last):
            score = scores[np.uint64(i)]
            if score >= floor:
                if score == floor:
                    if need == 0:
                        continue
                    need -= 1
                out[np.uint64(place)] = slots[np.uint64(i)]
                place += 1
    for i in range(len(out) - place):
        out[place + i] = slots[last + i]
