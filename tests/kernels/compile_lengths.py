"""Compile what a server launches for the lengths that come, and find nothing new."""

from __future__ import annotations

import torch

from compile_encoders import linear_and_asymmetric, mlp
from compiling import BF16, binaries, zeros
from hata_kernels.attend import attend
from hata_kernels.attend.value_sums import launch_sums
from hata_kernels.rows import RowGroups
from hata_kernels.rows.triton import copy_rows_triton, group_rows_triton
from hata_sglang.decoding.gpu_buffers import eager_width
from hata_sglang.decoding.warm import PROMPTS
from rank_cases import rank_triton


def lengths_all() -> None:
    """No request compiles anything, whatever its length: `warm_encoders`, captured and eager steps.

    All that a server launches between the captures of two batch sizes, and the lengths that come.
    """
    for encoder in (*linear_and_asymmetric(), mlp().to("cpu", BF16)):
        few, many = (
            new_binaries(run_prompts, encoder, tokens)
            for tokens in (PROMPTS, (1, 2, 15, 17, 32, 33, 100, 4096, 8191, 8192))
        )
        assert len(few) > 0
        assert many <= few, (encoder, many - few)
    groups = RowGroups(32, 131072, torch.device("cpu"))
    # SGLang captures with contexts of one token.
    captured, replayed = (
        new_binaries(run_groups, groups, lengths) for lengths in ((1,), (700, 5000, 65536, 131072))
    )
    assert len(captured) == 2
    assert captured == replayed
    captured, replayed = (
        new_binaries(run_copies, lengths) for lengths in ((1,), (700, 5000, 65536, 131072))
    )
    assert len(captured) == 1
    assert captured == replayed
    first, later = (new_binaries(run_sums, lengths) for lengths in ((1,), (511, 8192, 131072)))
    assert len(first) == 2
    assert first == later
    # What takes in tiles by powers of two is compiled for each of these.
    doubled, others = (
        new_binaries(run_eager, lengths)
        for lengths in ((3, 32768, 65536, 131072), (700, 16384, 16385, 40000, 100001, 131072))
    )
    assert len(doubled) == 4 + 4  # floor, filter and attention in two; take
    assert doubled == others


def new_binaries(run, *arguments) -> set[str]:
    """Compilations of a function's launches."""
    binaries.clear()
    run(*arguments)
    return set().union(*binaries.values())


def run_prompts(encoder, prompts) -> None:
    for tokens in prompts:
        # Keys as a slice of a fused projection.
        fused = zeros(tokens, (encoder.num_kv_heads + 5) * encoder.head_dim, dtype=BF16)
        k = fused[:, 3 * encoder.head_dim :][:, : encoder.num_kv_heads * encoder.head_dim]
        k = k.unflatten(1, (encoder.num_kv_heads, encoder.head_dim))
        codes = zeros(99, encoder.num_kv_heads, encoder.words)
        encoder._launch_keys(k, codes, zeros(tokens, dtype=torch.int64), None)


def run_groups(groups: RowGroups, lengths) -> None:
    for longest in lengths:
        group_rows_triton(zeros(32, 131072), zeros(32), longest=longest, groups=groups)


def run_sums(lengths) -> None:
    values, sums = zeros(50, 8, 128, dtype=BF16), zeros(40, 8, 128, dtype=torch.float32)
    rows = zeros(3, dtype=torch.int64)
    for longest in lengths:
        launch_sums(values, zeros(40, 131072 + 8), rows, rows, longest, sums)


def run_copies(lengths, rows_dtype=torch.int64, shares=((15600000, 20, 4096),)) -> None:
    for longest in lengths:
        copy_rows_triton(
            zeros(40, 131072 + 8),
            zeros(8, dtype=rows_dtype),
            zeros(8, dtype=torch.int64),
            longest=longest,
            shares=shares,
            token_slots=zeros(9, 131072),
            lengths=zeros(9),
            budgets=zeros(len(shares), 9),
        )


def run_eager(lengths) -> None:
    for longest in lengths:
        width = eager_width(longest, 131072)
        where = (zeros(8, width), zeros(8), zeros(8))
        codes = (zeros(8, 32, 4), zeros(99, 8, 4))
        options = {"plane_weights": (1, 2, 4, 8), "sink": 16, "recent": 64, "k_max": 2048}
        slots = rank_triton(*codes, *where, **options)
        caches = (zeros(50, 8, 128, dtype=BF16) for _ in range(2))
        attend(zeros(8, 32, 128, dtype=BF16), *caches, slots, *where[1:], scale=0.1)
