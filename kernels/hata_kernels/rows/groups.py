"""Rows of a step that share the slots of a long prefix: memory, and the search by PyTorch."""

from __future__ import annotations

import torch

from ..checks import expect, expect_lengths, expect_table, expect_tensor

#: Slots that one program compares.
CHUNK = 4096


class RowGroups:
    """Groups of the rows of a step, one after the other for steps of up to `rows` rows.

    A group is named after its leader, a row whose slots its members have up to a length of their
    own. A row is in one group at most.

    Parameters
    ----------
    rows : int
    width : int
        Tokens of the longest context.
    device : torch.device
    unit, least : int
        Tokens that shared prefixes are multiples of, and members of a group, at least.

    Attributes
    ----------
    shared : torch.Tensor
        int32 ``[rows]``: leading tokens of a row that its group shares, 0 without a group.
    members : torch.Tensor
        int32 ``[rows, rows]``: the rows of a leader's group, from the left; the rest is undefined.
    sizes, extents : torch.Tensor
        int32 ``[rows]``: members of a leader's group, and tokens that at least `least` of them
        share, which is the most that any member's `shared` is; 0 without a group.
    leaders : torch.Tensor
        int32 ``[rows]``: scratch.
    same : torch.Tensor
        int32 ``[rows, parts]``: scratch.
    """

    #: Shared prefixes are whole numbers of so many tokens; every tile of the ranking divides it.
    UNIT = 1024
    #: Members that make a group: fewer cost less one by one.
    LEAST = 4

    def __init__(
        self, rows: int, width: int, device: torch.device, *, unit: int = UNIT, least: int = LEAST
    ) -> None:
        make = {"dtype": torch.int32, "device": device}
        self.unit, self.least = unit, least
        self.shared = torch.empty(rows, **make)
        self.members = torch.empty(rows, rows, **make)
        self.sizes, self.extents = torch.empty(rows, **make), torch.empty(rows, **make)
        self.leaders = torch.empty(rows, **make)
        self.same = torch.empty(rows, -(-width // CHUNK), **make)

    @staticmethod
    def bytes_for(rows: int, width: int) -> int:
        """Bytes of the tensors."""
        return 4 * rows * (4 + rows + -(-width // CHUNK))

    def check(self, rows: int, longest: int, device: torch.device) -> None:
        """Check that a step fits.

        Raises
        ------
        ValueError
            When it has more rows or longer ones, or is elsewhere.
        """
        most, parts = self.same.shape
        expect(self.shared.device == device, "groups.device", device, self.shared.device)
        expect(rows <= most, "groups.rows", f"at least {rows}", most)
        width = parts * CHUNK
        expect(longest <= width, "groups.width", f"at least {longest}", width)


def check_groups(
    token_slots: torch.Tensor, lengths: torch.Tensor, longest: int, groups: RowGroups
) -> None:
    """Check the arguments of `group_rows_naive` and of its Triton counterpart.

    Raises
    ------
    ValueError
        When a shape, dtype, device or ``longest`` does not fit.
    """
    expect_table("token_slots", token_slots, None)
    rows, width = token_slots.shape
    where = {"device": token_slots.device, "contiguous": True}
    expect_tensor("lengths", lengths, shape=(rows,), dtypes=(torch.int32,), **where)
    expect(1 <= longest <= width, "longest", f"1 to token_slots.shape[1] = {width}", longest)
    groups.check(rows, longest, token_slots.device)


def group_rows_naive(
    token_slots: torch.Tensor, lengths: torch.Tensor, *, longest: int, groups: RowGroups
) -> None:
    """Find the rows of a step that share the slots of a prefix.

    A row's leader is the first row that has its slot of the middle of its context there, as rows
    have that ask about one document. Their slots are then compared one by one.

    Parameters
    ----------
    token_slots : torch.Tensor
        int32 ``[bs, at least longest]``: slots in position order; undefined beyond the lengths.
    lengths : torch.Tensor
        int32 ``[bs]``, tokens, at least 1.
    longest : int
        No length is above it.
    groups : RowGroups
        Gets the groups, of the first bs rows.

    Raises
    ------
    ValueError
        When a shape, dtype, device, ``longest`` or a length does not fit.
    """
    check_groups(token_slots, lengths, longest, groups)
    counts = expect_lengths("lengths", lengths, longest, f"1 to longest = {longest}")
    followers: dict[int, list[tuple[int, int]]] = {row: [] for row in range(len(counts))}
    for row, count in enumerate(counts):
        middle = count // 2
        leader = next(
            other
            for other in range(row + 1)
            if counts[other] > middle and token_slots[other, middle] == token_slots[row, middle]
        )
        shorter = min(count, counts[leader])
        differ = (token_slots[row, :shorter] != token_slots[leader, :shorter]).nonzero()
        same = int(differ[0]) if len(differ) else shorter
        followers[leader].append((row, same // groups.unit * groups.unit))
    for leader, rows in followers.items():
        ranked = sorted((same for _, same in rows), reverse=True)
        # Tiles that fewer share are not worth it.
        extent = ranked[groups.least - 1] if len(rows) >= groups.least else 0
        members = [row for row, same in rows if min(same, extent) > 0]
        groups.extents[leader], groups.sizes[leader] = extent, len(members)
        groups.members[leader, : len(members)] = torch.tensor(members, dtype=torch.int32)
        for row, same in rows:
            groups.shared[row] = min(same, extent)
