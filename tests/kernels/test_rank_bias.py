"""Ranking with a bias by distance: the CPU one against loops, Triton against the CPU one."""

from __future__ import annotations

import pytest
import torch

import hata_kernels.rank.buffers as sizes_of
import hata_kernels.rank.floor as sampling
import hata_kernels.rank.shared as sharing
import hata_kernels.rank.take as taking
import rank_cases as cases
from hata_kernels.rank import rank
from hata_kernels.score import score_levels, score_naive
from shared_cases import Call, make_groups, share

# A fixture, which pytest looks for in each module.
small = cases.small

BYTES = tuple(2**plane for plane in range(8))


@pytest.mark.parametrize("scale_bits", [0, 8])
def test_naive_adds_what_the_half_octave_says(make_token_slots, scale_bits) -> None:
    lengths = [1, 2, 5, 77, 130]
    inputs, options = cases.make_inputs(make_token_slots, lengths, 2, 1, (1, 2), scale_bits)
    options, ends = cases.with_bias(inputs, options), {"sink": 1, "recent": 2}
    bias = options["bias"]
    found = score_naive(*inputs, **options, **ends)
    without = score_naive(*inputs, **{**options, "bias": None}, **ends)
    # The first distances of half octaves 0 to 15; there is none in half octave 1.
    first = [0, 1, 1, 2, 3, 5, 7, 11, 15, 23, 31, 47, 63, 95, 127, 191]
    for row, length in enumerate(lengths):
        for token in range(length):
            bucket = max(n for n in range(16) if n != 1 and first[n] <= length - 1 - token)
            expected = (without[row, :, token] + bias[row, :, bucket]).clamp_min(0)
            if token < 1 or token >= length - 2:
                expected = torch.full((2,), score_levels((1, 2), 32, scale_bits) - 1.0)
            assert torch.equal(found[row, :, token], expected), (row, token)
        assert found[row, :, length:].eq(0).all()


# lengths, KV heads, words, plane weights, scale bits, budgets
CASES = [
    pytest.param([1, 700, 12], 3, 4, (1, 2, 4, 8), 0, [5, 40, 12], id="four-planes"),
    pytest.param([420], 8, 3, (1,) * 4, 8, [30], id="scales8"),
    pytest.param([500], 1, 8, BYTES, 16, [125], id="scales16-wide-products"),
]


@pytest.mark.parametrize("kind", ["one-list", "sections", "rescored"])
@pytest.mark.parametrize(
    ("lengths", "kv_heads", "words", "weights", "scale_bits", "budgets"), CASES
)
def test_triton_equals_naive(
    device, monkeypatch, poison, make_token_slots, small, kind,
    lengths, kv_heads, words, weights, scale_bits, budgets,
) -> None:  # fmt: skip
    monkeypatch.setattr(sizes_of, "SECTIONED_ROWS", 100 if kind == "sections" else 0)
    monkeypatch.setattr(sizes_of, "SECTION_TOKENS", 1)
    if kind == "rescored":
        cases.set_room(monkeypatch, 20)
        monkeypatch.setattr(taking, "BLOCK", 64)
        monkeypatch.setattr(taking, "WARPS", 2)
    shape = (lengths, kv_heads, words, weights, scale_bits)
    inputs, options = cases.make_inputs(make_token_slots, *shape)
    options, ends = cases.with_bias(inputs, options), {"sink": 2, "recent": 3}
    k_max = max(budgets) + 1
    cases.check(device, poison, inputs, options, budgets, **ends, k_max=k_max)
    # It makes a difference.
    arguments = (*inputs, torch.tensor(budgets, dtype=torch.int32))
    both = [rank(*arguments, **(options | of), **ends, k_max=k_max) for of in ({}, {"bias": None})]
    assert not torch.equal(*both)


# KV heads, words, weights, scale bits, unit, words of a thread
KINDS = [
    pytest.param(8, 4, (1, 2, 4, 8), 0, 128, 32, id="tiles-of-128"),
    pytest.param(2, 3, (3, 1), 16, 512, 32, id="scales16-tiles-of-512"),
    pytest.param(8, 1, (1, 2), 0, 32, 1, id="tiles-of-16"),
]


@pytest.mark.parametrize(("kv_heads", "words", "weights", "scales", "unit", "held"), KINDS)
def test_rows_that_share_slots(
    device, monkeypatch, kv_heads, words, weights, scales, unit, held
) -> None:
    """Members end at other places: a shared token is at another distance for each."""
    monkeypatch.setattr(sampling, "UNSAMPLED", 300)
    monkeypatch.setattr(sampling, "SAMPLE", 128)
    monkeypatch.setattr(sharing, "WARPS", 16)
    monkeypatch.setattr(sizes_of, "THREAD_WORDS", held)
    tokens = max(2, 512 // unit) * unit
    lengths = [tokens + more for more in (7, 30, 1, 300, 480)]
    slots = share(lengths, "aaaaa", [tokens] * 5, 2 * max(lengths))
    groups = make_groups(slots, lengths, device, unit)
    assert groups.shared[:5].tolist() == [tokens] * 5
    call = Call(slots, lengths, kv_heads, words, weights, scales)
    call.options = cases.with_bias(call.arguments, call.options)
    call.check(device, groups)


@pytest.mark.gpu
@pytest.mark.parametrize("weights", [(1, 2, 4, 8), (1,) * 4], ids=str)
@pytest.mark.parametrize("batch", [1, 5])
def test_long_contexts_on_a_gpu(poison, make_token_slots, batch, weights) -> None:
    device, lengths = torch.device("cuda"), [131072 - 997 * row for row in range(batch)]
    inputs, options = cases.make_inputs(make_token_slots, lengths, 8, 4, weights, 0)
    options = cases.with_bias(inputs, options)
    ends = {"sink": 16, "recent": 64, "k_max": 2048}
    cases.check(device, poison, inputs, options, [2048] * batch, **ends)


@pytest.mark.gpu
def test_many_users_of_a_long_document() -> None:
    device, lengths = torch.device("cuda"), [20000 + 137 * row for row in range(32)]
    slots = share(lengths, "a" * 32, [20000] * 32, 40000)
    groups = make_groups(slots, lengths, device, 512)
    call = Call(slots, lengths)
    call.arguments[4].fill_(312)
    call.options = cases.with_bias(call.arguments, call.options)
    call.options |= {"k_max": 512, "sink": 16, "recent": 64}
    call.check(device, groups)
