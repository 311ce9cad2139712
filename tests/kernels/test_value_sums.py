"""Sums of the values of whole requests: the reference and Triton against float64."""

from __future__ import annotations

import pytest
import torch

from hata_kernels.attend import sum_values

SLOTS, REQUESTS, WIDTH = 700, 7, 1300


def make_rows(lengths, kv_heads, dim, dtype, integer=torch.int64):
    """Rows of other requests than their number, of slots that may repeat; NaN in all others."""
    table = torch.full((REQUESTS, WIDTH + 5), 2**31 - 1, dtype=torch.int32)[:, :WIDTH]
    values = torch.full((SLOTS, kv_heads, dim), torch.nan)
    rows = torch.randperm(REQUESTS)[: len(lengths)]
    expected = torch.full((REQUESTS, kv_heads, dim), torch.nan, dtype=torch.float64)
    for row, length in zip(rows.tolist(), lengths, strict=True):
        table[row, :length] = torch.randint(SLOTS, (length,), dtype=torch.int32)
        values[table[row, :length].long()] = torch.randn(length, kv_heads, dim) + 1
    values = values.to(dtype)
    for row, length in zip(rows.tolist(), lengths, strict=True):
        expected[row] = values[table[row, :length].long()].double().sum(0)
    return values, table, rows.to(integer), torch.tensor(lengths, dtype=integer), expected


def check(values, table, rows, seq_lens, expected, device, longest):
    sums = torch.full(expected.shape, torch.nan, device=device)
    there = [tensor.to(device) for tensor in (values, rows, seq_lens)]
    slots = torch.empty_strided(table.shape, table.stride(), dtype=table.dtype, device=device)
    slots.copy_(table)
    sum_values(there[0], slots, *there[1:], longest=longest, sums=sums)
    torch.testing.assert_close(sums.cpu().double(), expected, rtol=1e-5, atol=1e-3, equal_nan=True)
    return sums


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_reference(dtype) -> None:
    check(*make_rows([1, 5, 1300, 0], 3, 64, dtype), "cpu", 1300)


# Lengths, longest, KV heads, head size: parts of 512 tokens, blocks of 16, columns of 256.
CASES = [
    pytest.param([1, 16, 17, 511, 512, 513], 513, 1, 64, id="around-blocks-and-parts"),
    pytest.param([1300, 2], 1300, 3, 96, id="some-parts-D96"),
    pytest.param([40, 0, 1025], 1100, 2, 256, id="no-tokens-D256"),
]


@pytest.mark.parametrize("integer", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize(("lengths", "longest", "kv_heads", "dim"), CASES)
def test_triton(device, lengths, longest, kv_heads, dim, integer) -> None:
    check(*make_rows(lengths, kv_heads, dim, torch.float16, integer), device, longest)


def test_a_sum_does_not_depend_on_the_other_rows(device) -> None:
    values, table, rows, seq_lens, expected = make_rows([700, 30], 2, 64, torch.float16)
    together = check(values, table, rows, seq_lens, expected, device, 1290)
    alone = torch.full(expected.shape, torch.nan)
    alone[rows[0]] = expected[rows[0]].float()
    sums = check(values, table, rows[:1], seq_lens[:1], alone.double(), device, 700)
    assert torch.equal(sums[rows[0]], together[rows[0]])


def test_a_length_beyond_the_table_counts_as_its_width(device) -> None:
    values, table, rows, seq_lens, expected = make_rows([WIDTH, 3], 2, 64, torch.float16)
    # The last row of the table, so that what is behind it is nobody's.
    expected[[int(rows[0]), REQUESTS - 1]] = expected[[REQUESTS - 1, int(rows[0])]]
    table[[int(rows[0]), REQUESTS - 1]] = table[[REQUESTS - 1, int(rows[0])]]
    rows = torch.where(rows == REQUESTS - 1, rows[0], rows)
    rows[0] = REQUESTS - 1
    check(values, table, rows, seq_lens + torch.tensor([900, 0]), expected, device, WIDTH + 900)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sums": torch.zeros(3, 2, 64).half()}, r"sums\.dtype"),
        ({"sums": torch.zeros(4, 2, 64)}, r"sums\.shape: expected \[3, 2, 64\]"),
        ({"rows": torch.zeros(2)}, r"rows\.dtype"),
        ({"seq_lens": torch.zeros(1).int()}, r"seq_lens\.shape: expected \[2\]"),
    ],
)
def test_wrong_arguments_are_named(changed, message) -> None:
    good = {
        "v_cache": torch.zeros(9, 2, 64),
        "req_to_token": torch.zeros(3, 8, dtype=torch.int32),
        "rows": torch.zeros(2).int(),
        "seq_lens": torch.ones(2).int(),
        "longest": 8,
        "sums": torch.zeros(3, 2, 64),
    }
    with pytest.raises(ValueError, match=message):
        sum_values(**good | changed)
