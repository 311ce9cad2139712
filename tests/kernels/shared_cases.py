"""What tests of rows that share slots have in common: such rows, their groups, and a ranking."""

from __future__ import annotations

import torch

import rank_cases as cases
from hata_kernels.rank import RankBuffers, rank, shared_values
from hata_kernels.rows import RowGroups, group_rows


def share(lengths, documents, shared, slots: int) -> torch.Tensor:
    """Slots of rows that begin with so many tokens of a document; garbage beyond the lengths."""
    table = cases.random_words(len(lengths), max(lengths) + 5)
    texts = {name: torch.randperm(slots - 1) + 1 for name in set(documents)}
    for row, (length, name, same) in enumerate(zip(lengths, documents, shared, strict=True)):
        own = torch.randperm(slots - 1)[:length] + 1
        own[: min(length, same)] = texts[name][: min(length, same)]
        table[row, :length] = own.int()
    return table


def make_groups(token_slots, lengths, device, unit, more: int = 2) -> RowGroups:
    """Groups for more rows than there are, full of garbage where nothing is written."""
    groups = RowGroups(len(lengths) + more, token_slots.shape[1], torch.device("cpu"), unit=unit)
    cases.fill_with_garbage(groups)
    lengths = torch.tensor(lengths, dtype=torch.int32)
    group_rows(token_slots, lengths, longest=int(lengths.max()), groups=groups)
    for name, tensor in vars(groups).items():
        if isinstance(tensor, torch.Tensor):
            setattr(groups, name, tensor.to(device))
    return groups


class Call:
    """Arguments of a ranking, on the CPU."""

    def __init__(self, token_slots, lengths, kv_heads=8, words=4, weights=(1, 2, 4, 8), scales=0):
        slots = int(max(row[:n].max() for row, n in zip(token_slots, lengths, strict=True))) + 1
        shape = (kv_heads, words, weights, scales)
        codes, self.options = cases.make_codes(len(lengths), slots, *shape)
        budgets = torch.tensor([max(1, n // 12) for n in lengths], dtype=torch.int32)
        self.arguments = [*codes, token_slots, torch.tensor(lengths), budgets]
        self.options |= {"sink": 4, "recent": 9, "k_max": int(budgets.max())}

    def buffers(self, device) -> RankBuffers:
        """Scratch full of garbage."""
        values = shared_values(*self.arguments[1].shape[1:], self.options["plane_weights"])
        k_max = self.options["k_max"]
        return cases.make_buffers(self.arguments, self.options, device, k_max, values=values)

    def check(self, device, groups, buffers=None) -> RankBuffers:
        """Compare with the reference; returns the scratch."""
        expected = rank(*self.arguments, **self.options)
        buffers = buffers or self.buffers(device)
        moved = [argument.to(device) for argument in self.arguments]
        options = cases.on(device, self.options)
        found = cases.rank_triton(*moved, **options, buffers=buffers, groups=groups)
        assert torch.equal(found.cpu(), expected)
        return buffers
