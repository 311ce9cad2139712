"""The reference of the ranking, by PyTorch: score every token, then select."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..bits import WORD_BITS
from ..score.levels import score_dtype
from ..score.naive import score_naive
from ..select import select

if TYPE_CHECKING:
    from . import RankArguments


def rank_naive(arguments: RankArguments) -> torch.Tensor:
    """`rank` on a CPU; buffers and groups make no difference.

    Raises
    ------
    ValueError
        When a length is not 1 to the table's width, or a budget not 1 to k_max.
    """
    out, lengths = arguments.result(), (arguments.token_slots, arguments.seq_lens)
    weights, scale_bits = arguments.plane_weights, arguments.scale_bits
    dtype = score_dtype(weights, arguments.codes.shape[2] * WORD_BITS, scale_bits)
    scores = torch.empty(*out.shape[:2], arguments.token_slots.shape[1], dtype=dtype)
    score_naive(
        arguments.q_codes,
        arguments.codes,
        *lengths,
        plane_weights=weights,
        sink=arguments.sink,
        recent=arguments.recent,
        out=scores,
        scales=arguments.scales,
        scale_bits=scale_bits,
    )
    return select(scores, *lengths, arguments.budgets, k_max=arguments.k_max, out=out)
