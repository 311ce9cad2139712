"""Triton attention over whole contexts; a prefix that several requests share is read once.

Attention over a shared prefix and over the rest of a context are computed apart and merged by
their log-sum-exp, as in Hydragen (Juravsky et al. 2024, arXiv 2402.05099) and in FlashInfer's
cascade (Ye et al. 2024): for the prefix the queries of all requests that share it are one matrix,
so that its K and V are read once for all of them. Which rows share what is read on the device
(`RowGroups`), and every program computes from it which part of the work is its own, so the
launches depend on shapes only: safe inside a CUDA graph, and nothing is planned on the host.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..bits import power_of_2
from ..chain import chain_options
from ..checks import expect
from .checks import HEAD_DIMS, MAX_GROUP, check_heads, check_room
from .gather import LOG2_E

# Tokens that a program reads at a time, at most, and numbers of their K.
BLOCK, NUMBERS = 64, 2**13
# Query heads of all members that a program attends for, at most, and numbers of their sums.
QUERIES, SUMS = 128, 2**14
# Multiprocessors of an H100; both launches are what they hold at the same time.
PROCESSORS = 132
# Blocks that are worth a program.
PREFIX_LEAST, TAIL_LEAST = 4, 2
# Stages of the loads of K and V: those of the next two blocks are under way.
STAGES = 3
# Numbers of sums that take 8 warps, and a multiprocessor's memory with the K and V under way;
# otherwise it holds two programs.
WIDE = 2**14
# Of a GPU, at least.
CAPABILITY = (9, 0)
# Parts that the merge takes in at a time.
PARTS = 16


def fits_dense(q_heads: int, kv_heads: int, dim: int, device: torch.device) -> bool:
    """Whether `attend_dense` has kernels for query heads, KV heads and their size on a GPU.

    They take up to 128 KiB of shared memory, for the queries of a group and the K and V that are
    under way: more than most GPUs before compute capability 9.0 have, where they were never run.
    """
    shape = q_heads % kv_heads == 0 and q_heads // kv_heads <= MAX_GROUP and dim in HEAD_DIMS
    return shape and torch.cuda.get_device_capability(device) >= CAPABILITY


class DenseSplit(NamedTuple):
    """How a call's work is divided.

    Attributes
    ----------
    members : int
        Rows of a group that a program attends for: 16 to QUERIES query heads, padded.
    prefix_units, tail_units : int
        Programs of a KV head that attend prefixes, and that attend the rest.
    prefix_places, tail_places : int
        Places for their partial results of all query heads.
    """

    members: int
    prefix_units: int
    tail_units: int
    prefix_places: int
    tail_places: int


def dense_split(rows: int, group: int, kv_heads: int, dim: int) -> DenseSplit:
    """Divide the work of so many rows; ``group`` is the query heads of a KV head."""
    group, dim = power_of_2(group), power_of_2(dim)
    most = min(QUERIES, SUMS // dim) // group
    members = max(min(most, power_of_2(rows)), 16 // group, 1)
    sums = (members * group * dim, max(16, group) * dim)
    prefix, tail = (max(1, PROCESSORS * (1 if n >= WIDE else 2) // kv_heads) for n in sums)
    # A row has at most one part of each kind from a program. With b the row's place among all rows,
    # b + program is another place for every part of the rest: along the line of the work one of
    # them grows with every part, and neither falls. A part of prefixes is of at most MEMBERS rows,
    # whose places r among the rows of all groups follow each other: so is r + MEMBERS * program.
    return DenseSplit(members, prefix, tail, prefix * members + rows, tail + rows)


def most_places(rows: int, group: int, kv_heads: int, dim: int) -> int:
    """Places of both kinds together that a call of up to ``rows`` rows needs."""
    # Programs and members follow from the power of two that is not below the rows.
    powers = [2**n for n in range(rows.bit_length())]
    splits = [dense_split(n, group, kv_heads, dim) for n in (rows, *powers)]
    return max(split.prefix_places + split.tail_places for split in splits)


class DenseBuffers:
    """Partial results of `attend_dense`, so that a captured step allocates nothing.

    Calls on one stream may share them: layers of one step, and batches of all sizes.

    Parameters
    ----------
    rows : int
        Largest batch size.
    q_heads, kv_heads, dim : int
        Query heads, KV heads, and their size.
    device : torch.device or str
        Where the caches are.

    Attributes
    ----------
    partial, lse : torch.Tensor
        float32, flat: attention over each part, and the base-2 logarithm of its softmax's
        denominator.
    plan : torch.Tensor
        int32 ``[rows, 4]``: place of a row's first part of a prefix and number of such parts, and
        the same of the rest of its context.

    Raises
    ------
    ValueError
        When a size is less than 1, or ``q_heads`` no multiple of ``kv_heads``.
    """

    def __init__(
        self, rows: int, q_heads: int, kv_heads: int, dim: int, device: torch.device | str
    ) -> None:
        sizes = {"rows": rows, "q_heads": q_heads, "kv_heads": kv_heads, "dim": dim}
        for name, value in sizes.items():
            expect(value >= 1, name, "at least 1", value)
        expect(q_heads % kv_heads == 0, "q_heads", f"a multiple of {kv_heads}", q_heads)
        heads = most_places(rows, q_heads // kv_heads, kv_heads, dim) * q_heads
        self.partial = torch.empty(heads * dim, dtype=torch.float32, device=device)
        self.lse = torch.empty(heads, dtype=torch.float32, device=device)
        self.plan = torch.empty(rows, 4, dtype=torch.int32, device=device)

    def check(
        self, rows: int, q_heads: int, dim: int, split: DenseSplit, device: torch.device
    ) -> None:
        """Raise ``ValueError`` unless a call of these sizes fits."""
        heads = (split.prefix_places + split.tail_places) * q_heads
        check_room(self, {"partial": heads * dim, "lse": heads, "plan": 4 * rows}, device)


def launch_dense(
    q, k_cache, v_cache, token_slots, seq_lens, groups, out, *, scale, buffers
) -> None:
    """`hata_kernels.attend.attend_dense` on the GPU, of checked arguments.

    Raises
    ------
    ValueError
        When heads or buffers do not fit.
    """
    batch, q_heads, dim = q.shape
    kv_heads = k_cache.shape[1]
    group = q_heads // kv_heads
    check_heads(q, group)
    if batch == 0:
        return
    if buffers is None:
        buffers = DenseBuffers(batch, q_heads, kv_heads, dim, q.device)
    split, power = dense_split(batch, group, kv_heads, dim), power_of_2(dim)
    buffers.check(batch, q_heads, dim, split, q.device)

    from .dense_kernels import _dense_merge_kernel, _tail_kernel
    from .dense_prefix import _prefix_kernel

    # Fewer rows than a group needs have none: there is nothing to launch for.
    grouped = groups is not None and batch >= groups.least
    shared = groups.shared if grouped else seq_lens  # which then is not read as such
    caches, kept = (q, k_cache, v_cache, token_slots), (buffers.plan, buffers.partial, buffers.lse)
    strides = (q.stride(0), token_slots.stride(0))
    exponent = scale * LOG2_E  # exp(x) as exp2(x * log2(e))
    sizes = {"DIM": dim, "DIM_POW2": power} | chain_options(q.device)
    reads = sizes | {"HEADS": kv_heads, "GROUP": group, "ROWS_POW2": max(16, power_of_2(batch))}
    reads["BLOCK"] = min(BLOCK, NUMBERS // power)
    if grouped:
        queries = split.members * power_of_2(group)
        _prefix_kernel[(split.prefix_units, kv_heads)](
            *(*caches, shared, groups.members, groups.sizes, groups.extents, *kept),
            *(*strides, groups.members.stride(0), batch, exponent),
            GROUP_POW2=power_of_2(group),
            MEMBERS=split.members,
            WHOLE=queries >= QUERIES,
            LEAST=PREFIX_LEAST,
            num_warps=8 if queries * power >= WIDE else 4,
            num_stages=STAGES,
            **reads,
        )
    pad = max(16, power_of_2(group))  # tl.dot needs 16
    _tail_kernel[(split.tail_units, kv_heads)](
        *(*caches, seq_lens, shared, *kept, *strides, token_slots.shape[1], batch),
        *(split.prefix_places, exponent),
        GROUP_PAD=pad,
        GROUPED=grouped,
        LEAST=TAIL_LEAST,
        num_warps=8 if pad * power >= WIDE else 4,
        num_stages=STAGES,
        **reads,
    )
    _dense_merge_kernel[(batch * q_heads,)](
        *(seq_lens, shared, *kept, out),
        Q_HEADS=q_heads,
        MEMBERS=split.members,
        GROUPED=grouped,
        PARTS=PARTS,
        num_warps=4,
        **sizes,
    )
