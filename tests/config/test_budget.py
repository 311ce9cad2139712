"""Budget: the same integers on the host and in tensors, for every length and form."""

from fractions import Fraction
from math import ceil

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from hata_sglang.config import Budget

LENGTHS = st.integers(0, 2**31 - 1)
FIXED = st.integers(1, 10**6).map(Budget.model_validate)


@st.composite
def ratios(draw):
    units = draw(st.integers(1, 10**9))
    low = draw(st.integers(1, 10**6))
    high = draw(st.integers(low, 2 * 10**6))
    return Budget.model_validate({"ratio": units / 10**9, "min": low, "max": high})


def ratio_budget(ratio, low=1, high=10**6):
    return Budget.model_validate({"ratio": ratio, "min": low, "max": high})


def test_fixed():
    budget = Budget.model_validate(256)
    assert budget.is_fixed
    assert [budget.tokens(n) for n in (0, 1, 255, 256, 257, 10**6)] == [0, 1, 255, 256, 256, 256]
    assert str(budget) == "256"


def test_ratio_rounds_up_and_is_clamped():
    budget = ratio_budget(0.0156, 64, 512)
    assert not budget.is_fixed
    # 0.0156 * 6000 = 93.6; 0.0156 * 4000 = 62.4 < min; 0.0156 * 32768 = 511.2; above: max.
    assert budget.tokens(6000) == 94
    assert budget.tokens(4000) == 64
    assert budget.tokens(32768) == 512
    assert budget.tokens(131072) == 512
    assert budget.tokens(10) == 10
    assert str(budget) == "1.56 % (64 to 512)"


@pytest.mark.parametrize(
    ("ratio", "length", "tokens"), [(0.07, 100, 7), (0.55, 100, 55), (0.14, 50, 7)]
)
def test_ratio_is_exact_where_floats_are_not(ratio, length, tokens):
    assert ceil(ratio * length) == tokens + 1  # what this guards against
    assert ratio_budget(ratio).tokens(length) == tokens


@given(st.integers(1, 10**9), LENGTHS)
def test_ratio_is_the_ceiling_of_the_exact_product(units, length):
    budget = ratio_budget(units / 10**9, 1, 2**31 - 1)
    assert budget.tokens(length) == min(length, max(1, ceil(Fraction(units, 10**9) * length)))


@given(FIXED | ratios(), st.lists(LENGTHS, min_size=1, max_size=8))
@example(ratio_budget(1.0, 1, 2**31 - 1), [2**31 - 1, 0, 1])
@example(ratio_budget(1e-9, 1, 1), [2**31 - 1, 0, 1])
def test_tensor_gives_the_same_numbers(budget, lengths):
    expected = [budget.tokens(length) for length in lengths]
    for dtype in (torch.int32, torch.int64):
        result = budget.tokens_tensor(torch.tensor(lengths, dtype=dtype))
        assert result.dtype == torch.int32
        assert result.tolist() == expected


def test_tensor_keeps_shape_and_input():
    lengths = torch.tensor([[10, 400], [300, 0]])
    assert Budget.model_validate(256).tokens_tensor(lengths).tolist() == [[10, 256], [256, 0]]
    assert lengths.tolist() == [[10, 400], [300, 0]]


@given(FIXED | ratios(), LENGTHS, LENGTHS)
def test_k_max_bounds_every_shorter_context(budget, one, other):
    shorter, longer = sorted((one, other))
    assert budget.tokens(shorter) <= budget.k_max(longer)
    assert budget.k_max(longer) == budget.tokens(longer)


@given(FIXED | ratios())
def test_dump_is_what_yaml_would_hold(budget):
    assert Budget.model_validate(budget.model_dump()) == budget


def test_is_hashable_and_frozen():
    budget = Budget.model_validate(256)
    assert {budget: 1}[Budget.model_validate(256)] == 1
    with pytest.raises(ValidationError):
        budget.min = 3
