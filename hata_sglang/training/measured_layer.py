"""Attention on captures that no weights learn from: what selections keep of it, and its output."""

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
from hata_sglang.training.left_out import LeastSquares, outputs
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
    Masses and errors are lists of float, one per layer. Those of outputs need captures with values.
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
                None if capture.v is None else capture.v.to(device),
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

    def left_out_weights(self, encoder: Encoder, budget: TopK) -> torch.Tensor:
        """What the mean of the values that codes leave out should weigh (`LeastSquares`).

        Parameters
        ----------
        encoder : Encoder
            With all heads.
        budget : TopK
            Only its sink and recent tokens count, as far as `LeastSquares.ends` has room for them.

        Returns
        -------
        torch.Tensor
            float32 ``[layers, Hq, RATIOS]``.
        """
        fit = LeastSquares()
        for part, _ in self.parts:
            seq_lens = part.positions + 1
            most = LeastSquares.ends(seq_lens)
            ends = TopK(len(part.k), min(budget.sink, most), min(budget.recent, most))
            scores = dense_scores(encoder, part.q, part.k, part.positions)
            order = select(scores, part.positions, ends)
            fit.add([*outputs(part, order, LeastSquares.counts(seq_lens))])
        return fit.weights().unflatten(0, (self.layers, -1))

    def output_errors(
        self, encoder: Encoder, budget: TopK, weights: torch.Tensor
    ) -> dict[str, list[float]]:
        """Relative errors of the output of attention over a budget's selections.

        Parameters
        ----------
        encoder : Encoder
            With all heads.
        budget : TopK
        weights : torch.Tensor
            As `left_out_weights` returns them.

        Returns
        -------
        dict of str to list of float
            ``exact`` top-k, the ``codes``, and these ``with mean`` of the values left out.
        """
        found: dict[str, list[torch.Tensor]] = {"exact": [], "codes": [], "with mean": []}
        for part, attention in self.parts:
            kept = TopK(len(part.k), budget.sink, budget.recent)
            counts = [(part.positions + 1).clamp_max(budget.k)]
            (best,) = outputs(part, select(attention, part.positions, kept), counts)
            scores = dense_scores(encoder, part.q, part.k, part.positions)
            (coded,) = outputs(part, select(scores, part.positions, kept), counts)
            found["exact"].append(best.error())
            found["codes"].append(coded.error())
            found["with mean"].append(coded.error(weights.flatten(0, 1)))
        return {name: self._per_layer(own) for name, own in found.items()}

    def _per_layer(self, by_head: list[torch.Tensor]) -> list[float]:
        """Means of what captures gave by KV head, ``[Hkv]`` each, over captures and heads."""
        return torch.stack(by_head).mean(0).reshape(self.layers, -1).mean(1).tolist()

    def _mean(self, scores, budget: TopK) -> list[float]:
        masses = [
            attention_mass(attention, select(scores(part, attention), part.positions, budget)).mean(
                1
            )
            for part, attention in self.parts
        ]
        return self._per_layer(masses)
