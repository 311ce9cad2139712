"""Memory of the rows of a step that share the slots of a long prefix."""

from __future__ import annotations

import torch

from ..checks import expect

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
