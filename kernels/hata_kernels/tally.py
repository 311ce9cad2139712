"""What launches did, counted where they do it: the replay of a CUDA graph runs no Python.

A tally is an int64 tensor `[SIZE]` of one layer, on the device of its cache. The kernels that write
codes and that attend over a selection add to it. Slot 0 is the one that SGLang's pool keeps for the
padding of a batch: what is written there, or begins there, is not counted.
"""

from __future__ import annotations

import torch

from .checks import expect_tensor

#: Places of the totals: keys whose codes were written; launches that attended; over these launches
#: and their requests, tokens of the context, and tokens that were attended.
ENCODED, STEPS, CONTEXT, ATTENDED = range(4)
SIZE = 4


def check_tally(tally: torch.Tensor | None, device: torch.device) -> None:
    """Check a tally, where there is one.

    Raises
    ------
    ValueError
        When it is not a contiguous int64 ``[SIZE]`` of that device.
    """
    if tally is not None:
        expect_tensor(
            "tally", tally, shape=(SIZE,), dtypes=(torch.int64,), device=device, contiguous=True
        )


def count_encoded(tally: torch.Tensor | None, slots: torch.Tensor) -> None:
    """Count keys that were encoded to ``slots [T]``; nothing without a tally."""
    check_tally(tally, slots.device)
    if tally is not None:
        tally[ENCODED] += (slots > 0).sum()


def count_attended(
    tally: torch.Tensor | None, slots: torch.Tensor, seq_lens: torch.Tensor, counts: torch.Tensor
) -> None:
    """Count one launch that attended; nothing without a tally.

    Parameters
    ----------
    tally : torch.Tensor or None
    slots : torch.Tensor
        int32 ``[bs, kv_heads, k_max]``: the selection.
    seq_lens, counts : torch.Tensor
        Integers ``[bs]``: tokens of each context, and how many of its selection were attended.
    """
    check_tally(tally, slots.device)
    if tally is not None:
        real = slots[:, 0, 0] > 0
        tally[STEPS] += real[:1].sum()
        tally[CONTEXT] += seq_lens[real].sum()
        tally[ATTENDED] += counts[real].sum()
