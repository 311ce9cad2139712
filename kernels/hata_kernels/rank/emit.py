"""How a thread lists those of its scores that reach the floor."""

from __future__ import annotations

import triton
import triton.language as tl

from .tokens import pack_entries


@triton.jit
def count_kept(kept):
    """Ones of `kept` as `emit` takes it: the last field of this product is the sum of all."""
    return (kept * 0x11111111 >> 28) & 15


@triton.jit
def emit(
    score,
    slot,
    tile,
    entries_run,
    kept,
    field,
    SCORING: tl.constexpr,
    floor=None,
    counts_ptr=None,
    first_bin=None,
    BINS: tl.constexpr = 0,
):
    """List the scores of runs that `kept` has a one for, in four bits a token.

    A run is of up to eight tokens, the last dimension of ``score``; ``field`` is where in ``kept``
    a token's four bits begin, and ``entries_run`` where its run's first candidate goes. With BINS
    each is counted by how far above ``floor`` it is, from ``counts_ptr + first_bin`` on.

    Triton would move all scores between threads to store some of them, and compute all their
    addresses. In PTX every thread stores what it has.
    """
    before = kept * 0x11111110  # fields are how many of the run come before
    one = 1 << field
    if SCORING.ptx:
        unit: tl.constexpr = 1 << (31 - SCORING.score_bits)
        listed: tl.constexpr = """{
            .reg .pred low; .reg .b32 number, high; .reg .b64 place;
            and.b32 number, $5, $6;
            setp.eq.b32 low, number, 0;
            @low bra DONE;
            bfe.u32 number, $7, $8, 4;
            mad.wide.u32 place, number, 8, $4;
            mad.lo.s32 high, $1, $9, $3;
            st.global.v2.b32 [place], {$2, high};
        """
        if BINS > 0:
            last: tl.constexpr = BINS - 1
            tl.inline_asm_elementwise(
                listed
                + """
                sub.s32 number, $1, $10;
                min.s32 number, number, $13;
                add.s32 number, number, $12;
                mad.wide.u32 place, number, 4, $11;
                red.relaxed.gpu.global.add.u32 [place], 1;
                DONE: mov.b32 $0, 0;
                }""",
                "=r,r,r,r,l,r,r,r,r,r,r,l,r,r",
                [
                    score,
                    slot,
                    tile,
                    entries_run.to(tl.int64),
                    kept,
                    one,
                    before,
                    field,
                    unit,
                    floor,
                    counts_ptr.to(tl.int64),
                    first_bin,
                    last,
                ],
                dtype=tl.int32,
                is_pure=False,
                pack=1,
            )
        else:
            tl.inline_asm_elementwise(
                listed + "DONE: mov.b32 $0, 0; }",
                "=r,r,r,r,l,r,r,r,r,r",
                [score, slot, tile, entries_run.to(tl.int64), kept, one, before, field, unit],
                dtype=tl.int32,
                is_pure=False,
                pack=1,
            )
    else:
        keep = (kept & one) != 0
        entry = pack_entries(score, tile, slot, SCORING)
        tl.store(entries_run + ((before >> field) & 15), entry, mask=keep)
        if BINS > 0:
            bin = first_bin + tl.minimum(score - floor, BINS - 1)
            tl.atomic_add(counts_ptr + bin, 1, mask=keep, sem="relaxed")
