"""Attention mass on captures that no weights learn from: validation texts and held-out ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hata_kernels.encoders import Encoder, dense_scores
from hata_sglang.training.attention_mass import (
    TopK,
    attention_mass,
    group_attention,
    select,
)
from hata_sglang.training.capture import Capture
from hata_sglang.training.options import TrainOptions


class MeasuredLayers:
    """Captures of some layers to measure on, with the true attention kept at hand.

    Parameters
    ----------
    captures : sequence of Capture
        With the heads of all layers (`capture.join`).
    layers : int
        How many they are.
    options : TrainOptions
        Their `measured_queries` say how many queries are used per capture, at most, evenly spaced.
    device : torch.device

    Notes
    -----
    All results are lists of float, one per layer.
    """

    def __init__(
        self, captures: Sequence[Capture], layers: int, options: TrainOptions, device: torch.device
    ) -> None:
        self.layers = layers
        self.parts: list[tuple[Capture, torch.Tensor]] = []
        for capture in captures:
            count = len(capture.positions)
            rows = torch.linspace(0, count - 1, min(options.measured_queries, count))
            rows = rows.round().long()
            part = Capture(
                capture.q[rows].to(device),
                capture.k.to(device),
                capture.positions[rows].to(device),
                capture.scale,
            )
            self.parts.append((part, group_attention(part.q, part.k, part.positions, part.scale)))

    def mass(self, encoder: Encoder, budget: TopK) -> list[float]:
        """Mean attention mass that the codes of `encoder`, with all heads, keep."""
        return self._mean(
            lambda part, _: dense_scores(encoder, part.q, part.k, part.positions), budget
        )

    def exact(self, budget: TopK) -> list[float]:
        """Mean attention mass of exact top-k: the ceiling."""
        return self._mean(lambda _, attention: attention, budget)

    def streaming(self, budget: TopK) -> list[float]:
        """Mean attention mass of the sink tokens and, for the rest, the last ones."""
        return self._mean(
            lambda part, attention: torch.arange(
                len(part.k), device=part.k.device, dtype=torch.float32
            ).expand_as(attention),
            budget,
        )

    def _mean(self, scores, budget: TopK) -> list[float]:
        masses = [
            attention_mass(attention, select(scores(part, attention), part.positions, budget)).mean(
                1
            )
            for part, attention in self.parts
        ]
        return torch.stack(masses).mean(0).reshape(self.layers, -1).mean(1).tolist()
