"""Compile every kernel for a GPU that need not be there; run by test_compile.py on its own.

Each wrapper is called as a server calls it, on CPU tensors, with Triton's launches turned into
compilations for compute capability 9.0 by the real compiler and ptxas. The tests that run kernels
without a GPU use Triton's interpreter, which takes more than the compiler does.
"""

from __future__ import annotations

import torch

from compile_encoders import encode_all, step_all
from compile_lengths import lengths_all, run_copies
from compiling import BF16, F16, F32, compiled, start, zeros
from hata_kernels.attend import RATIOS, LeftOut, attend, attend_dense
from hata_kernels.attend.pages import write_pages
from hata_kernels.attend.value_sums import launch_sums
from hata_kernels.rows import RowGroups
from hata_kernels.rows.triton import group_rows_triton
from hata_kernels.score import exact_score
from hata_kernels.score.distance import DISTANCES
from hata_kernels.select.flashinfer_topk import _repeat_rows_kernel
from hata_kernels.tally import SIZE
from rank_cases import rank_triton


def rank_all() -> None:
    """Codes of several models, for contexts of 131072 tokens; some with a bias by distance."""
    for heads, words, weights, scale_bits, *biased in (
        (8, 4, (1,) * 4, 0), (8, 4, (1, 2, 4, 8), 0), (8, 2, (1, 2, 4, 8), 0), (32, 4, (1,), 0),
        (32, 4, (1, 2, 4, 8), 0), (3, 3, (1,) * 3, 0), (8, 4, (1,) * 4, 8),
        (32, 2, (1, 2, 4, 8), 0), (32, 1, (1, 2, 4, 8), 0), (8, 1, (1, 2, 4, 8), 0),
        (2, 4, (1, 2, 4, 8), 0), (8, 8, (1, 2, 4, 8), 0), (8, 8, (1,) * 4, 0),
        (8, 8, tuple(2**plane for plane in range(8)), 16),
        (8, 4, (1, 2, 4, 8), 0, True), (8, 2, (1, 2, 4, 8), 0, True), (2, 4, (1, 2, 4, 8), 8, True),
    ):  # fmt: skip
        scale_dtype = {8: torch.uint8, 16: torch.int16}.get(scale_bits)
        for batch, k_max in ((8, 512), (8, 2048), (1, 2048)):
            rank_triton(
                zeros(batch, heads * len(weights), words),
                zeros(99, heads, words),
                zeros(batch, 131072),
                zeros(batch, dtype=torch.int64),
                zeros(batch),
                plane_weights=weights,
                sink=16,
                recent=64,
                k_max=k_max,
                scales=zeros(99, heads, dtype=scale_dtype) if scale_bits else None,
                scale_bits=scale_bits,
                bias=zeros(batch, heads, DISTANCES) if biased else None,
            )


def shared_all() -> None:
    """Tiles of 16 to 1024 tokens, one to eight words, scales; and what finds rows and groups."""
    for heads, words, weights, scale_bits, *biased in (
        (8, 4, (1, 2, 4, 8), 0, True), (8, 4, (1,) * 4, 8, True),
        (8, 4, (1, 2, 4, 8), 0), (8, 4, (1,) * 4, 8), (8, 8, (1, 2, 4, 8), 0), (64, 4, (1, 2), 0),
        (8, 2, (1, 2, 4, 8), 0),
        (4, 2, (1, 2, 4, 8), 16), (2, 3, (3, 1), 0), (1, 4, (1,) * 4, 0), (3, 1, (1,), 0),
    ):  # fmt: skip
        scale_dtype = {8: torch.uint8, 16: torch.int16}.get(scale_bits)
        rank_triton(
            zeros(32, heads * len(weights), words),
            zeros(99, heads, words),
            zeros(32, 131072),
            zeros(32, dtype=torch.int64),
            zeros(32),
            plane_weights=weights,
            sink=16,
            recent=64,
            k_max=512,
            scales=zeros(99, heads, dtype=scale_dtype) if scale_bits else None,
            scale_bits=scale_bits,
            bias=zeros(32, heads, DISTANCES) if biased else None,
            groups=RowGroups(32, 131072, torch.device("cpu")),
        )
    for rows_dtype, shares in ((torch.int64, [(15600000, 20, 4096)]), (torch.int32, [])):
        run_copies((131072,), rows_dtype, shares)
    for rows in (4, 32, 256):
        groups = RowGroups(rows, 131072, torch.device("cpu"))
        group_rows_triton(zeros(rows, 131072), zeros(rows), longest=131072, groups=groups)


def exact_all() -> None:
    """Every head size, groups of 1 to 16, the dtypes of a KV cache."""
    for dim, group, dtype in (
        (64, 3, BF16), (96, 7, F16), (128, 4, BF16), (256, 1, BF16), (256, 16, BF16),
        (128, 2, F32), (256, 5, F32),
    ):  # fmt: skip
        exact_score(
            zeros(2, 2 * group, dim, dtype=dtype),
            zeros(50, 2, dim, dtype=dtype),
            zeros(2, 3000),
            zeros(2, dtype=torch.int64),
            scale=0.1,
            sink=4,
            recent=16,
            out=zeros(2, 2, 3000, dtype=F32),
        )


def select_all() -> None:
    """The helper of FlashInfer's top-k; pages."""
    _repeat_rows_kernel[(1,)](zeros(4), zeros(32), zeros(32), 32, HEADS=8)
    write_pages(zeros(2, 3, 40), zeros(7), zeros(240))


def attend_all() -> None:
    """Every head size, groups of 1 to 64; few rows split and many whole."""
    for dim, group, dtype, batch in (
        (128, 4, BF16, 1), (64, 1, F16, 200), (96, 7, BF16, 2), (256, 2, BF16, 2),
        (256, 32, BF16, 2), (128, 64, F16, 2), (256, 64, BF16, 200),
    ):  # fmt: skip
        caches = (zeros(50, 2, dim, dtype=dtype) for _ in range(2))
        attend(
            zeros(batch, 2 * group, dim, dtype=dtype),
            *caches,
            zeros(batch, 2, 1024),
            zeros(batch, dtype=torch.int64 if batch == 2 else torch.int32),
            zeros(batch),
            scale=0.1,
            tally=zeros(SIZE, dtype=torch.int64),
        )


def left_out_all() -> None:
    """Sums of values; attention with their mean, with a head more in the padding or beyond it."""
    for dim, group, dtype, batch in (
        (128, 4, BF16, 1), (64, 7, BF16, 200), (96, 16, F16, 2), (256, 64, BF16, 200),
    ):  # fmt: skip
        caches = [zeros(50, 2, dim, dtype=dtype) for _ in range(2)]
        sums = zeros(9, 2, dim, dtype=F32)
        rows = zeros(batch, dtype=torch.int64)
        attend(
            zeros(batch, 2 * group, dim, dtype=dtype),
            *caches,
            zeros(batch, 2, 1024),
            zeros(batch),
            zeros(batch),
            scale=0.1,
            tally=zeros(SIZE, dtype=torch.int64),
            left_out=LeftOut(sums, rows, zeros(2 * group, RATIOS, dtype=F32)),
        )
        launch_sums(caches[1], zeros(9, 3000), rows, zeros(batch), 3000, sums)


def dense_all() -> None:
    """Every head size, groups of 1 to 64; few rows, and more than a program takes."""
    for batch, group, dim, dtype in (
        (32, 4, 128, BF16), (8, 4, 128, BF16), (1, 4, 128, BF16), (128, 3, 64, BF16),
        (32, 1, 128, BF16), (16, 7, 96, F16), (32, 7, 128, F16), (16, 4, 256, BF16),
        (9, 64, 256, BF16), (32, 64, 128, BF16), (64, 3, 96, BF16),
    ):  # fmt: skip
        attend_dense(
            zeros(batch, 2 * group, dim, dtype=dtype),
            *(zeros(50, 2, dim, dtype=dtype) for _ in range(2)),
            zeros(batch, 1024),
            zeros(batch, dtype=torch.int64 if batch == 32 else torch.int32),
            RowGroups(batch, 1024, torch.device("cpu")),
            scale=0.1,
        )


if __name__ == "__main__":
    start()
    for part in (
        encode_all, step_all, rank_all, shared_all, exact_all, select_all, attend_all,
        left_out_all, dense_all, lengths_all,
    ):  # fmt: skip
        part()
    print(*sorted(set(compiled)), len(compiled))
