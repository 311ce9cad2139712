"""Rows of a step: slots, lengths and budgets, Triton against PyTorch."""

from __future__ import annotations

import pytest
import torch

from hata_kernels.rows import SHARE_UNIT, copy_rows
from hata_kernels.rows import triton as kernels
from hata_sglang.config.budget import Budget

RATIOS = ({"ratio": 0.0156, "min": 20, "max": 70}, {"ratio": 0.07, "min": 1, "max": 10**6})
BUDGETS = [Budget.model_validate(value) for value in RATIOS]


def make_step(device, lengths, context=900, requests=7):
    table = torch.randint(1, 10**6, (requests, context), dtype=torch.int32)
    rows = torch.randint(requests, (len(lengths),))
    return [x.to(device) for x in (table, rows, torch.tensor(lengths))]


def make_out(poison, device, bs, width, shares):
    make = {"dtype": torch.int32, "device": device}
    return {
        "token_slots": poison(bs, width, **make),
        "lengths": poison(bs, **make),
        "budgets": poison(shares, bs, **make),
    }


@pytest.fixture
def poison():
    return lambda *shape, **make: torch.full(shape, -77, **make)


@pytest.mark.parametrize("shares", [0, 1, 2])
@pytest.mark.parametrize("lengths", [[1], [900], [1, 300, 64, 65], [127] * 9])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_triton_is_the_reference(device, monkeypatch, poison, lengths, shares, dtype) -> None:
    monkeypatch.setattr(kernels, "COPY_CHUNK", 64)
    table, rows, seq_lens = make_step(device, lengths)
    rows, seq_lens = rows.to(dtype), seq_lens.to(dtype)
    options = {"longest": max(lengths) + 3 * (max(lengths) < 900)}
    options["shares"] = [budget.share for budget in BUDGETS[:shares]]
    want, got = (
        make_out(poison, where, len(lengths) + 2, 905, shares) for where in ("cpu", device)
    )
    copy_rows(table.cpu(), rows.cpu(), seq_lens.cpu(), **options, **want)
    kernels.copy_rows_triton(table, rows, seq_lens, **options, **got)
    for name, tensor in want.items():
        assert torch.equal(tensor, got[name].cpu()), name


@pytest.mark.parametrize("lengths", [[1, 19, 20, 21, 899, 900]])
def test_budgets_are_those_of_the_configuration(poison, lengths) -> None:
    table, rows, seq_lens = make_step("cpu", lengths)
    out = make_out(poison, "cpu", len(lengths), 900, 2)
    shares = [budget.share for budget in BUDGETS]
    copy_rows(table, rows, seq_lens, longest=900, shares=shares, **out)
    want = [[budget.tokens(length) for length in lengths] for budget in BUDGETS]
    assert out["budgets"].tolist() == want
    assert out["lengths"].tolist() == lengths
    for row, length in enumerate(lengths):
        assert torch.equal(out["token_slots"][row, :length], table[rows[row], :length])
        assert (out["token_slots"][row, length:] == -77).all()


@pytest.mark.parametrize("lengths", [[0, 5], [5, 8]], ids=["zero", "beyond-longest"])
def test_naive_refuses_impossible_lengths(poison, lengths) -> None:
    table, rows, seq_lens = make_step("cpu", lengths)
    out = make_out(poison, "cpu", 2, 900, 0)
    with pytest.raises(ValueError, match="seq_lens: expected 1 to longest = 7"):
        copy_rows(table, rows, seq_lens, longest=7, shares=[], **out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"longest": 901}, r"longest: expected 1 to req_to_token.shape\[1\] = 900, found 901"),
        ({"longest": 0}, "longest: expected 1"),
        ({"shares": [(0, 1, 1)]}, "shares"),
        ({"shares": [(SHARE_UNIT + 1, 1, 1)]}, "shares"),
        ({"shares": [(5, 4, 3)]}, "shares"),
        ({"shares": []}, "budgets"),
        ({"lengths": torch.zeros(3, dtype=torch.int64)}, "lengths"),
        ({"token_slots": torch.zeros(2, 900, dtype=torch.int32)}, "lengths|rows"),
        ({"rows": torch.zeros(3)}, "rows"),
        ({"seq_lens": torch.zeros(2, dtype=torch.int64)}, "seq_lens"),
        ({"req_to_token": torch.zeros(3, 900)}, "req_to_token"),
    ],
)
def test_bad_arguments(poison, change, message) -> None:
    table, rows, seq_lens = make_step("cpu", [5, 6, 7])
    arguments = {"req_to_token": table, "rows": rows, "seq_lens": seq_lens, "longest": 900}
    arguments |= {"shares": [(5, 1, 9)], **make_out(poison, "cpu", 3, 900, 1), **change}
    with pytest.raises(ValueError, match=message):
        copy_rows(**arguments)
