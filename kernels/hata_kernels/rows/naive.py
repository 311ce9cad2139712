"""References of what is done to the rows of a step, by PyTorch: arguments are checked."""

from __future__ import annotations

import torch

from ..checks import expect_lengths

#: Shares of a context are whole numbers of these parts: host and device agree on every length.
SHARE_UNIT = 10**9


def copy_rows_naive(
    req_to_token, rows, seq_lens, longest, shares, token_slots, lengths, budgets
) -> None:
    """`copy_rows` on a CPU.

    Raises
    ------
    ValueError
        When a length is not 1 to ``longest``.
    """
    bs, tokens = rows.shape[0], seq_lens.to(torch.int64)
    counts = expect_lengths("seq_lens", tokens, longest, f"1 to longest = {longest}")
    for row, (request, length) in enumerate(zip(rows.tolist(), counts, strict=True)):
        token_slots[row, :length] = req_to_token[request, :length]
    lengths[:bs] = seq_lens
    for (parts, low, high), budget in zip(shares, budgets, strict=True):
        share = (tokens * parts + SHARE_UNIT - 1) // SHARE_UNIT
        budget[:bs] = torch.minimum(tokens, share.clamp(low, high))


def group_rows_naive(token_slots, lengths, longest, groups) -> None:
    """`group_rows` on a CPU.

    Raises
    ------
    ValueError
        When a length is not 1 to ``longest``.
    """
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
