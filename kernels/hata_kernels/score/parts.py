"""What every kernel that scores codes does with their bits and scales."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def popcount(x, PTX: tl.constexpr):
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
