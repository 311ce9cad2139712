"""Ranking with lists of sections at the sizes that are served: no test makes anything smaller."""

from __future__ import annotations

import pytest

import rank_cases as cases


def test_sections_of_long_contexts(device, poison, make_token_slots) -> None:
    """Two to five sections of the size that they usually have; lists that registers hold and one
    that they do not; thresholds that are counted and not.
    """
    lengths, budgets = [16384, 32768, 16385, 33000, 20000], [256, 512, 260, 300, 5000]
    inputs, options = cases.make_inputs(make_token_slots, lengths, 1, 1, (1, 2), 0)
    assert cases.sections(inputs, options) == 8
    inputs[1][500:9000:7] = inputs[0][3, 0]  # far above the others, for the fourth row
    buffers = cases.make_buffers(inputs, options, device, 5100)
    ends = {"sink": 2, "recent": 3, "k_max": 5100}
    cases.check(device, poison, inputs, options, budgets, **ends, buffers=buffers)
    found = cases.found_in(buffers, inputs, options)[:, :, 0]
    assert (found > 0).sum(0).tolist() == [2, 4, 3, 5, 3]
    assert found.amax(0).gt(4096).tolist() == [False, False, False, False, True]


@pytest.mark.parametrize("length", [212_992, 245_760])
def test_ties_of_two_sections_beyond_15_bits(device, poison, make_token_slots, length) -> None:
    """Sizes as served: ties of one section and those kept before it are more than 32,767."""
    k_max = 7000
    inputs, options = cases.make_inputs(make_token_slots, [length], 1, 2, (1, 2), 0)
    inputs[1][:] = inputs[1][0]
    assert cases.sections(inputs, options) == 8
    buffers = cases.make_buffers(inputs, options, device, k_max)
    assert buffers.sizes.field == 16
    ends = {"sink": 16, "recent": 64, "k_max": k_max}
    cases.check(device, poison, inputs, options, [k_max], **ends, buffers=buffers)
    found = cases.found_in(buffers, inputs, options).flatten()
    assert found.sum() == length
    assert found.max() > 32_767 - (k_max - 80)
