"""Arguments of ranking: signatures, sizes of buffers, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from hata_kernels.rank import RankBuffers, RankSizes, rank
from hata_kernels.score import score_levels
from hata_kernels.score.distance import DISTANCES
from rank_cases import rank_triton


@pytest.mark.parametrize(
    ("kv_heads", "words", "weights", "width", "k_max"),
    [(8, 4, (1, 2, 4, 8), 131072, 2048), (3, 3, (1,), 700, 20), (32, 4, (1,) * 4, 40000, 9000)],
    ids=str,
)
def test_sizes_of_a_row(kv_heads, words, weights, width, k_max) -> None:
    levels = score_levels(weights, 32 * words)
    sizes = RankSizes.of(kv_heads, words, levels, width, k_max)
    assert sizes.tiles * sizes.tile >= width > (sizes.tiles - 1) * sizes.tile
    assert min(width, 4 * k_max) <= sizes.room <= width


def test_no_requests(device) -> None:
    nothing = torch.zeros(0, dtype=torch.int32, device=device)
    codes = torch.zeros(9, 2, 1, dtype=torch.int32, device=device)
    arguments = (nothing.view(0, 4, 1), codes, nothing.view(0, 5), nothing, nothing)
    options = {"plane_weights": (1, 2), "sink": 1, "recent": 1, "k_max": 7}
    for implementation in (rank, rank_triton):
        assert implementation(*arguments, **options).shape == (0, 2, 7)


SCALES = torch.zeros(50, 3, dtype=torch.uint8)
INTS = {"dtype": torch.int32}
BIAS = torch.zeros(2, 3, DISTANCES, **INTS)
GOOD = {
    "q_codes": torch.zeros(2, 6, 4, **INTS),
    "codes": torch.zeros(50, 3, 4, **INTS),
    "token_slots": torch.zeros(2, 10, **INTS),
    "seq_lens": torch.tensor([5, 10]),
    "budgets": torch.tensor([4, 2], **INTS),
    "plane_weights": (1, 1),
    "sink": 1,
    "recent": 1,
    "k_max": 4,
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"q_codes": GOOD["q_codes"].long()}, r"q_codes\.dtype: expected torch\.int32"),
        ({"q_codes": GOOD["q_codes"][:, :5]}, r"q_codes\.shape: expected \[any, 6, 4\]"),
        (
            {"q_codes": torch.zeros(3, 6, 4, **INTS)},
            r"token_slots\.shape: expected \[3, any\], found",
        ),
        ({"q_codes": GOOD["q_codes"].to("meta")}, r"q_codes\.device: expected cpu, found meta"),
        ({"q_codes": torch.zeros(2, 4, 6, **INTS).mT}, "q_codes strides: expected a contiguous"),
        ({"codes": GOOD["codes"].transpose(0, 1)}, "codes strides: expected a contiguous tensor"),
        ({"codes": GOOD["codes"].float()}, r"codes\.dtype: expected torch\.int32"),
        ({"codes": GOOD["codes"][0]}, r"codes\.shape: expected \[any, any, any\], found \[3, 4\]"),
        ({"token_slots": GOOD["token_slots"].long()}, r"token_slots\.dtype: expected torch\.int32"),
        ({"token_slots": torch.zeros(10, **INTS)}, r"token_slots\.shape: expected \[2, any\]"),
        ({"token_slots": torch.zeros(10, 2, **INTS).T}, r"token_slots\.stride\(1\): expected 1"),
        ({"token_slots": GOOD["token_slots"].to("meta")}, r"token_slots\.device: expected cpu"),
        ({"seq_lens": torch.tensor([5.0, 9.0])}, r"seq_lens\.dtype: expected torch\.int32 or"),
        ({"seq_lens": torch.tensor([5])}, r"seq_lens\.shape: expected \[2\], found \[1\]"),
        ({"seq_lens": torch.tensor([5, 1, 9, 1])[::2]}, "seq_lens strides: expected a contiguous"),
        ({"budgets": torch.tensor([4, 2])}, r"budgets\.dtype: expected torch\.int32"),
        ({"budgets": torch.ones(3, **INTS)}, r"budgets\.shape: expected \[2\], found \[3\]"),
        ({"budgets": torch.ones(4, **INTS)[::2]}, "budgets strides: expected a contiguous tensor"),
        ({"plane_weights": ()}, "plane_weights: expected positive integers"),
        ({"plane_weights": (1, 0)}, "plane_weights: expected positive integers"),
        ({"plane_weights": (1,)}, r"q_codes\.shape: expected \[any, 3, 4\], found \[2, 6, 4\]"),
        ({"plane_weights": (1, 2**16)}, r"sum of plane_weights: expected less than 2\*\*20"),
        ({"sink": -1}, "sink: expected at least 0, found -1"),
        ({"recent": -1}, "recent: expected at least 0, found -1"),
        ({"k_max": 0}, "k_max: expected at least 1, found 0"),
        ({"out": torch.zeros(2, 3, 5, **INTS)}, r"out\.shape: expected \[2, 3, 4\], found"),
        ({"out": torch.zeros(2, 3, 4)}, r"out\.dtype: expected torch\.int32"),
        ({"out": torch.zeros(2, 4, 3, **INTS).mT}, "out strides: expected a contiguous tensor"),
        ({"scale_bits": 4}, "scale_bits: expected 0, 8 or 16, found 4"),
        ({"scale_bits": 8}, "scales: expected a tensor, found None"),
        ({"scales": SCALES}, "scales: expected None, because scale_bits is 0"),
        ({"scales": SCALES, "scale_bits": 16}, r"scales\.dtype: expected torch\.int16"),
        ({"bias": BIAS[:1]}, r"bias\.shape: expected \[2, 3, 44\], found \[1, 3, 44\]"),
        ({"bias": BIAS.long()}, r"bias\.dtype: expected torch\.int32"),
        ({"scales": SCALES[:9], "scale_bits": 8}, r"scales\.shape: expected \[50, 3\]"),
    ],
)
def test_wrong_arguments_are_named(changed, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank(**{**GOOD, **changed})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seq_lens": torch.tensor([0, 5])}, "seq_lens: expected 1 to 10"),
        ({"seq_lens": torch.tensor([5, 11])}, "seq_lens: expected 1 to 10"),
        ({"budgets": torch.tensor([4, 5], **INTS)}, "budgets: expected 1 to 4"),
        ({"budgets": torch.tensor([4, 0], **INTS)}, "budgets: expected 1 to 4"),
    ],
    ids=["length-0", "beyond-width", "budget-high", "budget-0"],
)
def test_naive_refuses_impossible_lengths_and_budgets(changed, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank(**{**GOOD, **changed})


def test_buffers_that_do_not_fit_are_named() -> None:
    sizes = RankSizes.of(3, 4, score_levels((1, 1), 128), 10, 4)
    cpu = torch.device("cpu")
    with pytest.raises(ValueError, match=r"buffers\.rows: expected at least 6, found 5"):
        rank_triton(**GOOD, buffers=RankBuffers(5, sizes, cpu))
    for name in ("room", "tiles", "tile"):
        other = dataclasses.replace(sizes, **{name: getattr(sizes, name) - 1})
        with pytest.raises(ValueError, match=r"buffers\.sizes: expected those of RankSizes\(tile"):
            rank_triton(**GOOD, buffers=RankBuffers(6, other, cpu))


def test_contexts_whose_tiles_do_not_fit_beside_a_score() -> None:
    assert RankSizes.of(8, 4, 2**18, 2**20, 64).tile << 13 == 2**20
    with pytest.raises(ValueError, match=r"width: expected at most 1048576 .* 18 bits"):
        RankSizes.of(8, 4, 2**18, 2**20 + 1, 64)


def test_contexts_whose_tokens_are_too_many_to_count() -> None:
    """Three counts of `topk_rescored` share an int64."""
    RankSizes.of(1, 1, 34, 2**21 - 1, 20)
    with pytest.raises(ValueError, match=r"width: expected at most 2097151 .* found 2097152"):
        RankSizes.of(1, 1, 34, 2**21, 20)
