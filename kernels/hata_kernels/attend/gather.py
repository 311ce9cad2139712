"""Triton attention over selected slots: gather K and V, attend, merge; no page table, no plan.

Flash decoding (Dao et al. 2023) over a list of slots: every row, a request's KV head, is split
into parts of its selection; each program reads the K and V rows of its part once for all G query
heads, and a second launch merges the parts. Which parts have work is read on the device, so the
launches depend on shapes only: safe inside a CUDA graph, and nothing is planned on the host.
"""

from __future__ import annotations

import torch

from ..bits import power_of_2
from ..chain import chain_options
from ..checks import expect
from .checks import check_heads, check_room

# Slots that a program has in flight: see `attend_parts`. Read at every call, as all of these.
BLOCKS = (32, 64)
# Warps of a program, loads ahead.
WARPS, STAGES = 4, 3
# Slots that programs which run at once have in flight: 128 on each of an H100's 132
# multiprocessors, with heads of up to 128.
IN_FLIGHT = 132 * 128
# Parts of a row at most: what merging more takes is more than they save.
MOST_PARTS = 32
LOG2_E = 1.4426950408889634


def attend_parts(rows: int, k_max: int) -> tuple[int, int]:
    """Into how many parts every selection is split at most, and the slots of a block.

    A row of fewer slots than k_max has smaller parts before it has fewer of them (`_part_size`).

    Parts are no more than run at once: one more would run alone when all others have ended. Where
    every block of the larger size is a part, or there are more rows than run at once, the larger
    is faster, else the smaller, of which more run at once: on an H100 with bfloat16, 8 requests of
    128K tokens with k 2048 took 30.4 us instead of 30.9 (32 requests with k 512 30.5 and 31.8), but
    one request with k 512 5.7 instead of 5.4, and 128 requests with k 1536 216 instead of 195.

    Parameters
    ----------
    rows : int
        Requests times KV heads.
    k_max : int
        Slots of a row at most.

    Returns
    -------
    parts, block : int
        Parts of a row; slots that a program has in flight.
    """
    small, large = BLOCKS
    few = rows * -(-k_max // large) * large <= IN_FLIGHT
    block = large if few or rows * small > IN_FLIGHT else small
    blocks = -(-k_max // block)
    wanted = max(1, min(blocks, IN_FLIGHT // block // rows, MOST_PARTS))
    return -(-blocks // -(-blocks // wanted)), block


def most_parts(rows: int, k_max: int) -> int:
    """Parts of all rows together, at most, that are kept to be merged.

    Parameters
    ----------
    rows, k_max : int
        Largest of the calls: the result holds for every smaller batch and selection as well.
    """
    small = min(BLOCKS)
    if k_max <= small:  # a row that is one part is not kept
        return 0
    return min(rows * min(-(-k_max // small), MOST_PARTS), IN_FLIGHT // small)


class AttendBuffers:
    """Partial results of `attend`, so that a captured step allocates nothing.

    Calls on one stream may share them: layers of one step, and batches of all sizes.

    Parameters
    ----------
    rows : int
        Largest batch size times KV heads.
    group, dim : int
        Query heads per KV head, and their size.
    k_max : int
        Most slots of a row.
    device : torch.device or str
        Where the caches are.

    Attributes
    ----------
    partial, lse : torch.Tensor
        float32, flat: attention over each part, and the base-2 logarithm of its softmax's
        denominator.

    Raises
    ------
    ValueError
        When a size is less than 1.
    """

    def __init__(
        self, rows: int, group: int, dim: int, k_max: int, device: torch.device | str
    ) -> None:
        for name, value in (("rows", rows), ("group", group), ("dim", dim), ("k_max", k_max)):
            expect(value >= 1, name, "at least 1", value)
        heads = most_parts(rows, k_max) * group
        self.partial = torch.empty(heads * dim, dtype=torch.float32, device=device)
        self.lse = torch.empty(heads, dtype=torch.float32, device=device)

    def check(self, rows: int, parts: int, group: int, dim: int, device: torch.device) -> None:
        """Raise ``ValueError`` unless a call with ``rows * parts`` parts, if more than 1, fits."""
        heads = rows * parts * group if parts > 1 else 0
        check_room(self, {"partial": heads * dim, "lse": heads}, device)


def launch_gather(
    q, k_cache, v_cache, slots, seq_lens, budgets, out, *, scale, buffers, tally, left_out
) -> None:
    """`hata_kernels.attend.attend` on the GPU, of checked arguments.

    Raises
    ------
    ValueError
        When heads or buffers do not fit.
    """
    batch, q_heads, dim = q.shape
    kv_heads, k_max = slots.shape[1:]
    group, rows = q_heads // kv_heads, batch * kv_heads
    check_heads(q, group)
    expect(left_out is None, "left_out", "None on a GPU", "one")
    if batch == 0:
        return
    parts, block = attend_parts(rows, k_max)
    if buffers is None:
        buffers = AttendBuffers(rows, group, dim, k_max, q.device)
    buffers.check(rows, parts, group, dim, q.device)

    from .gather_kernels import _merge_kernel, _part_kernel

    lengths = (seq_lens, budgets)
    partial = (buffers.partial, buffers.lse)
    sizes = (k_max, parts)
    dim_pow2, group_pad = power_of_2(dim), max(16, power_of_2(group))  # tl.dot needs 16
    constants = {"HEADS": kv_heads, "GROUP": group, "DIM": dim, "DIM_POW2": dim_pow2}
    constants["BLOCK"] = block
    constants |= chain_options(q.device)
    _part_kernel[(rows, parts)](
        *(q, k_cache, v_cache, slots, *lengths, out, *partial, tally, q.stride(0), *sizes),
        scale * LOG2_E,  # exp(x) as exp2(x * log2(e))
        ROWS=group_pad,
        SPLIT=parts > 1,
        # The sums of 64 heads of 256 do not fit in 4 warps' registers.
        num_warps=WARPS if group_pad * dim_pow2 <= 2**13 else 2 * WARPS,
        num_stages=STAGES,
        **constants,
    )
    if parts > 1:
        _merge_kernel[(rows * group,)](
            *(*partial, *lengths, out, *sizes),
            PARTS_POW2=power_of_2(parts),
            num_warps=4,
            **constants,
        )
