"""What the ranking kernels share: how a program scores some tokens."""

from __future__ import annotations

import triton
import triton.language as tl

from .distance import DISTANCES, bucket_of

#: Over which of two dimensions Triton spreads threads: see `load_lanes`.
LANES_LAST = tl.constexpr(tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 7))


@triton.jit
def _popcount(x, PTX: tl.constexpr):
    """Set bits of each int32. The interpreter has no inline assembly: there, shift and mask."""
    if PTX:
        return tl.inline_asm_elementwise(
            "popc.b32 $0, $1;", "=r,r", [x], dtype=tl.int32, is_pure=True, pack=1
        )
    v = x.to(tl.uint32, bitcast=True)
    v = v - ((v >> 1) & 0x55555555)
    v = (v & 0x33333333) + ((v >> 2) & 0x33333333)
    v = (v + (v >> 4)) & 0x0F0F0F0F
    return ((v * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def scaled(score, scale, SCORING: tl.constexpr):
    """Scores times scales as they are stored: `hata_kernels.score.levels.scaled_scores`."""
    # The cast to int32 extends the sign of an int16; the mask undoes it.
    scale = scale.to(tl.int32) & SCORING.most
    signed = 2 * score - SCORING.full
    if SCORING.wide:
        signed = signed.to(tl.int64)
        scale = scale.to(tl.int64)
    return ((signed * scale + SCORING.full * SCORING.most) >> SCORING.shift).to(tl.int32)


@triton.jit
def _add_bits(a, b, c, PTX: tl.constexpr):
    """Full adder on every bit: sums and carries. Told apart from the XORs before it, or the
    compiler merges these into both results and computes them twice.
    """
    if PTX:
        return tl.inline_asm_elementwise(
            "lop3.b32 $0, $2, $3, $4, 0x96; lop3.b32 $1, $2, $3, $4, 0xE8;",
            "=&r,=&r,r,r,r",
            [a, b, c],
            dtype=(tl.int32, tl.int32),
            is_pure=True,
            pack=1,
        )
    return a ^ b ^ c, (a & b) | (c & (a | b))


@triton.jit
def _weighted_distance(keys, q_place, real, SCORING: tl.constexpr):
    """Weighted Hamming distances ``[LANES, RUN]`` of a piece of codes ``[LANES, RUN, piece]`` to
    queries.

    A GPU counts bits at a quarter of the rate at which it adds: full adders on whole words halve
    the popcounts. Where weights double from plane to plane, two words of a plane and the carry of
    the plane before make one word of sums and one of carries; where all weigh the same, planes
    are added in threes.
    """
    PLANES: tl.constexpr = SCORING.planes
    WEIGHTS: tl.constexpr = SCORING.weights
    WORDS: tl.constexpr = SCORING.piece
    LANES: tl.constexpr = keys.shape[0]
    RUN: tl.constexpr = keys.shape[1]
    PTX: tl.constexpr = SCORING.ptx
    if SCORING.doubling and PLANES > 1 and WORDS > 1:
        even, odd = tl.split(tl.reshape(keys, (LANES, RUN, WORDS // 2, 2)))
        carry = tl.zeros(even.shape, dtype=tl.int32)
        distance = tl.zeros(even.shape, dtype=tl.int32)
        for plane in tl.static_range(PLANES):
            query = tl.load(q_place + plane * SCORING.words, mask=real, other=0)
            q_even, q_odd = tl.split(tl.reshape(query, (LANES, 1, WORDS // 2, 2)))
            ones, carry = _add_bits(even ^ q_even, odd ^ q_odd, carry, PTX)
            distance += _popcount(ones, PTX) * WEIGHTS[plane]
        distance += _popcount(carry, PTX) * (2 * WEIGHTS[PLANES - 1])
        return tl.sum(distance, axis=2)
    distance = tl.zeros(keys.shape, dtype=tl.int32)
    if SCORING.equal:
        ones = keys ^ tl.load(q_place, mask=real, other=0)
        for pair in tl.static_range(PLANES // 2):
            a = keys ^ tl.load(q_place + (2 * pair + 1) * SCORING.words, mask=real, other=0)
            if 2 * pair + 2 < PLANES:
                b = keys ^ tl.load(q_place + (2 * pair + 2) * SCORING.words, mask=real, other=0)
                ones, twos = _add_bits(a, b, ones, PTX)
                distance += _popcount(twos, PTX)
            else:
                distance += _popcount(a & ones, PTX)
                ones = a ^ ones
        distance = (2 * distance + _popcount(ones, PTX)) * WEIGHTS[0]
    else:
        for plane in tl.static_range(PLANES):
            query = tl.load(q_place + plane * SCORING.words, mask=real, other=0)
            distance += _popcount(keys ^ query, PTX) * WEIGHTS[plane]
    return tl.sum(distance, axis=2)


@triton.jit
def _transposed(tensor):
    """``[LANES, RUN, ...]`` as Triton must load it; undoes itself."""
    if not LANES_LAST:
        return tensor
    elif len(tensor.shape) == 2:
        return tl.trans(tensor)
    else:
        return tl.permute(tensor, (1, 0, 2))


@triton.jit
def load_lanes(place, mask=None):
    """Load ``[LANES, RUN, ...]`` so that a thread has one lane, all of it; 0 where masked out.

    Of dimensions that are not contiguous in memory, Triton spreads threads over the first, and from
    3.7 on over the last.
    """
    if mask is None:
        return _transposed(tl.load(_transposed(place)))
    else:
        return _transposed(tl.load(_transposed(place), mask=_transposed(mask), other=0))


@triton.jit
def _words_of(piece, head, SCORING: tl.constexpr):
    """Words of a piece of a code, and which of them KV heads ``[LANES]`` have: broadcast to
    ``[LANES, RUN, piece]``. Others are 0 in keys and queries, and add nothing.
    """
    word = piece * SCORING.piece + tl.arange(0, SCORING.piece)
    real = (head < SCORING.heads)[:, None, None] & (word < SCORING.words)[None, None, :]
    return word[None, None, :], real


@triton.jit
def load_codes(codes_ptr, slot, head, SCORING: tl.constexpr):
    """Codes of slots ``[LANES, RUN]`` for KV heads ``[LANES]``: a tuple of ``[LANES, RUN, piece]``.

    One thread has one lane (`load_lanes`). A token's codes are one contiguous row of memory: where
    the heads of a token are lanes side by side, whole cache lines are read. Every slot is read,
    also of tokens that are none: theirs is 0, which is reserved.
    """
    PIECES: tl.constexpr = SCORING.pieces
    keys = ()
    for piece in tl.static_range(PIECES):
        word, real = _words_of(piece, head, SCORING)
        place = slot.to(tl.int64)[:, :, None] * (SCORING.heads * SCORING.words)
        place += (head * SCORING.words)[:, None, None] + word
        keys += (load_lanes(codes_ptr + place, real),)
    return keys


@triton.jit
def score_codes(
    inputs,
    scalars,
    keys,
    batch,
    head,
    slot,
    token,
    length,
    special,
    bucket,
    SCORING: tl.constexpr,
):
    """Scores ``[LANES, RUN]`` of tokens of one request, from what `load_codes` gave.

    ``special`` says that some may be sinks or recent, or at distances that are not all in the half
    octave ``bucket``.
    """
    row = batch * SCORING.heads + head
    has_head = head < SCORING.heads
    q_place = inputs.q_codes + row[:, None, None] * (SCORING.planes * SCORING.words)
    PIECES: tl.constexpr = SCORING.pieces
    score = tl.full(slot.shape, SCORING.full, tl.int32)
    for piece in tl.static_range(PIECES):
        word, real = _words_of(piece, head, SCORING)
        score -= _weighted_distance(keys[piece], q_place + word, real, SCORING)
    if SCORING.most > 0:
        place = slot.to(tl.int64) * SCORING.heads + head[:, None]
        scale = load_lanes(inputs.scales + place, has_head[:, None])
        score = scaled(score, scale, SCORING)
    if SCORING.biased:
        bias_rows = inputs.bias + row * DISTANCES
        bias = tl.load(bias_rows + bucket, mask=has_head, other=0)
        score += bias[:, None]
    if special:  # a scalar: the branch is the same for all threads
        if SCORING.biased:
            own_bias = bias_rows[:, None] + bucket_of(length, token)
            score += load_lanes(own_bias, has_head[:, None]) - bias[:, None]
        forced = (token < scalars.sink) | (token >= length - scalars.recent)
        score = tl.where(forced, SCORING.forced, score)
    if SCORING.biased:
        score = tl.maximum(score, 0)
    return score
