"""Rows that share slots: Triton against PyTorch, and both against what a group is."""

from __future__ import annotations

import pytest
import torch

from hata_kernels.rows import RowGroups, group_rows, groups
from hata_kernels.rows import triton as kernels
from hata_kernels.rows.triton import group_rows_triton

UNIT = 16


def make_rows(lengths, documents, shared, width: int = 0) -> torch.Tensor:
    """Slots of rows that begin with so many tokens of a document; garbage beyond the lengths."""
    width = width or max(lengths) + 3
    table = torch.randint(-(2**31), 2**31, (len(lengths), width), dtype=torch.int32)
    texts = {name: torch.randperm(10**5)[:5000].int() for name in set(documents)}
    for row, (length, name, same) in enumerate(zip(lengths, documents, shared, strict=True)):
        table[row, :length] = torch.arange(length) + 10**6 * (row + 1)
        table[row, : min(same, length)] = texts[name][: min(same, length)]
    return table


def make_groups(rows: int, width: int, device, **options) -> RowGroups:
    made = RowGroups(rows, width, torch.device(device), unit=UNIT, **options)
    for tensor in vars(made).values():
        if isinstance(tensor, torch.Tensor):
            tensor.fill_(-77)
    return made


# lengths, documents, shared tokens
CASES = [
    pytest.param([1], "a", [1], id="one"),
    pytest.param([1] * 6, "aaaaaa", [1] * 6, id="padding"),
    pytest.param([300] * 6, "aaaaaa", [290] * 6, id="one-group"),
    pytest.param([300] * 3, "aaa", [290] * 3, id="too-few"),
    pytest.param([300] * 6, "abcdef", [290] * 6, id="none"),
    pytest.param([300, 310, 305, 290, 1, 1, 320], "ababaab", [280] * 7, id="two-of-three-or-four"),
    pytest.param([300] * 9, "abababaab", [280] * 9, id="two-groups"),
    pytest.param([500, 510, 90, 520, 515], "aaaaa", [480] * 5, id="much-shorter"),
    pytest.param([400] * 6, "aaaaaa", [399, 64, 380, 256, 390, 250], id="other-ends"),
    pytest.param([400] * 5, "aaaaa", [400, 400, 400, 100, 400], id="one-leaves-before-the-middle"),
    pytest.param([128, 128, 256, 64, 192], "aaaaa", [256] * 5, id="ends-of-chunks"),
    pytest.param([200] * 40, "a" * 40, [190 - row for row in range(40)], id="many"),
]


@pytest.mark.parametrize(("lengths", "documents", "shared"), CASES)
@pytest.mark.parametrize("chunk", [64, 4096])
@pytest.mark.parametrize("least", [2, 4])
def test_triton_is_the_reference(
    device, monkeypatch, lengths, documents, shared, chunk, least
) -> None:
    for module in (groups, kernels):
        monkeypatch.setattr(module, "CHUNK", chunk)
    monkeypatch.setattr(kernels, "PARTS", 2)
    rows, longest = len(lengths), max(lengths)
    table, counts = make_rows(lengths, documents, shared), torch.tensor(lengths).int()
    want, got = (make_groups(rows + 3, 600, where, least=least) for where in ("cpu", device))
    group_rows(table, counts, longest=longest, groups=want)
    group_rows_triton(table.to(device), counts.to(device), longest=longest, groups=got)
    for name in ("shared", "sizes", "extents"):
        assert torch.equal(getattr(got, name).cpu(), getattr(want, name)), name
        assert (getattr(want, name)[rows:] == -77).all()
    for row, size in enumerate(want.sizes[:rows].tolist()):
        assert torch.equal(got.members[row, :size].cpu(), want.members[row, :size])
    check_groups(table, lengths, want, least)


def check_groups(table, lengths, made: RowGroups, least: int) -> None:
    """Every row is in one group at most, and has its leader's slots up to what it shares."""
    leaders = {}
    for leader in range(len(lengths)):
        for row in made.members[leader, : made.sizes[leader]].tolist():
            assert row not in leaders
            leaders[row] = leader
    for row, length in enumerate(lengths):
        shared = int(made.shared[row])
        assert shared % UNIT == 0
        assert (shared > 0) == (row in leaders)
        if row in leaders:
            leader = leaders[row]
            assert shared <= min(length, lengths[leader])
            assert torch.equal(table[row, :shared], table[leader, :shared])
    for leader in range(len(lengths)):
        extent, size = int(made.extents[leader]), int(made.sizes[leader])
        members = made.shared[made.members[leader, :size].long()] if size else torch.zeros(0)
        assert (extent > 0) == (size > 0)
        if extent:
            assert members.max() == extent
            assert (members == extent).sum() >= least


def test_users_of_documents_are_found() -> None:
    lengths = [300, 310, 200, 305, 308, 290, 301, 302, 303]
    table = make_rows(lengths, "abcabbaab", [280, 280, 180, 281, 250, 280, 279, 64, 280])
    made = make_groups(9, 400, "cpu")
    group_rows(table, torch.tensor(lengths).int(), longest=310, groups=made)
    # The row that leaves its document before the middle finds nobody there.
    assert made.shared.tolist() == [0, 240, 0, 0, 240, 240, 0, 0, 240]
    assert made.members[1, :4].tolist() == [1, 4, 5, 8]
    assert made.sizes.tolist() == [0, 4, 0, 0, 0, 0, 0, 0, 0]


def test_no_rows(device) -> None:
    empty = torch.zeros(0, 5, dtype=torch.int32, device=device)
    made = make_groups(2, 5, device)
    for function in (group_rows, group_rows_triton):
        function(empty, empty[:, 0].contiguous(), longest=5, groups=made)


@pytest.mark.parametrize("lengths", [[0, 5], [5, 8]], ids=["zero", "beyond-longest"])
def test_naive_refuses_impossible_lengths(lengths) -> None:
    made = make_groups(2, 9, "cpu")
    slots = torch.ones(2, 9, dtype=torch.int32)
    with pytest.raises(ValueError, match="lengths: expected 1 to longest = 7"):
        group_rows(slots, torch.tensor(lengths).int(), longest=7, groups=made)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"longest": 0}, "longest: expected 1"),
        ({"longest": 11}, r"longest: expected 1 to token_slots.shape\[1\] = 10, found 11"),
        ({"lengths": torch.zeros(2, dtype=torch.int64)}, "lengths"),
        ({"lengths": torch.zeros(3, dtype=torch.int32)}, "lengths"),
        ({"token_slots": torch.zeros(2, 10)}, "token_slots"),
        ({"token_slots": torch.zeros(10, 2, dtype=torch.int32).T}, "token_slots"),
        ({"groups": make_groups(1, 10, "cpu")}, r"groups\.rows: expected at least 2, found 1"),
        ({"groups": make_groups(2, 10, "meta")}, r"groups\.device: expected cpu, found meta"),
    ],
)
def test_bad_arguments(change, message) -> None:
    arguments = {
        "token_slots": torch.zeros(2, 10, dtype=torch.int32),
        "lengths": torch.ones(2, dtype=torch.int32),
        "longest": 10,
        "groups": make_groups(2, 10, "cpu"),
    }
    with pytest.raises(ValueError, match=message):
        group_rows(**(arguments | change))


@pytest.mark.gpu
@pytest.mark.parametrize("users", [5, 32, 200])
def test_long_documents_on_a_gpu(users) -> None:
    lengths = [30000 - 11 * row for row in range(users)]
    table = make_rows(lengths, "a" * users, [4990 - row for row in range(users)])
    counts = torch.tensor(lengths).int()
    # Their middles differ: the document's slots are there as well.
    table[:, 12000:20000] = torch.arange(8000, dtype=torch.int32)
    want, got = (RowGroups(users, 32000, torch.device(where)) for where in ("cpu", "cuda"))
    group_rows(table, counts, longest=30000, groups=want)
    group_rows_triton(table.cuda(), counts.cuda(), longest=30000, groups=got)
    assert want.sizes[0] == users
    for name in ("shared", "sizes", "extents"):
        assert torch.equal(getattr(got, name).cpu(), getattr(want, name)), name
    assert torch.equal(got.members[0].cpu(), want.members[0])
