"""How kernels of the ranking add what a query's scores gain by distance."""

from __future__ import annotations

import triton
import triton.language as tl

from ..score import distance

DISTANCES = tl.constexpr(distance.DISTANCES)


@triton.jit
def bucket_of(length, token):
    """Half octave of the distance of a token from the last of `length`
    (`hata_kernels.score.distance`); of the last token's for those beyond it, which are none.
    """
    left = tl.maximum(length - token, 1).to(tl.float32)
    return (left.to(tl.int32, bitcast=True) >> 22) - 254


@triton.jit
def common_bucket(length, first, COUNT: tl.constexpr, SCORING: tl.constexpr):
    """Half octave of the first of COUNT tokens, and whether others are in others."""
    if not SCORING.biased:
        return 0, False
    bucket = bucket_of(length, first)
    return bucket, bucket != bucket_of(length, first + COUNT - 1)


@triton.jit
def add_nearer(score, bias, bias_rows, real, length, token, bucket, nearer):
    """Correct scores ``[n, m]`` that gained the bias ``[n]`` of each row's half octave ``bucket``:
    those of tokens ``[1, m]`` in one of the nearer ones, of which there are so many at most.

    Far from a row's end that is one. Rows whose ends differ have it in different tiles: so many
    that a load for every score would take too long.
    """
    for _ in range(nearer):
        # As many tokens as are left at the near end of the half octave are not of it.
        first = length - (((2 + (bucket & 1)) << (bucket >> 1)) >> 1) + 1
        is_nearer = token >= first[:, None]
        bucket = tl.maximum(bucket - 1, 0)
        other = tl.load(bias_rows + bucket, mask=real, other=0)
        score += tl.where(is_nearer, (other - bias)[:, None], 0)
        bias = other
    return score
