"""Results of ``eval offline`` as rows of a CSV, one per KV head."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from hata_sglang.evaluation.selection_quality import Quality
from hata_sglang.evaluation.selectors import Selector

MEASURES = tuple(field.name for field in fields(Quality))


@dataclass(frozen=True)
class Result:
    """What one selector was worth in one layer on one sequence under one budget.

    Attributes
    ----------
    layer : int
    selector : Selector
    budget : int or float
        As asked for.
    tokens : float
        Kept per query, the mean.
    queries : int
    quality : Quality
        On the CPU.
    """

    layer: int
    selector: Selector
    budget: int | float
    tokens: float
    queries: int
    quality: Quality


def csv_rows(
    results: Sequence[Result], dense: Collection[int], **common: Any
) -> list[dict[str, Any]]:
    """One row per selector, budget, layer and KV head: means over queries, then over sequences.

    Parameters
    ----------
    results : sequence of Result
    dense : collection of int
        Layers that serving leaves dense, for the column of this name.
    **common
        Columns that all rows share.
    """
    grouped: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        selector = result.selector
        key = (result.layer, selector.name, selector.bits, str(result.budget))
        grouped.setdefault(key, []).append(result)
    rows = []
    for (layer, name, bits, budget), group in grouped.items():
        means = {
            measure: torch.stack([getattr(result.quality, measure) for result in group]).mean(0)
            for measure in MEASURES
        }
        for head in range(len(means[MEASURES[0]])):
            rows.append(
                {
                    "layer": layer,
                    "head": head,
                    "dense": int(layer in dense),
                    "selector": name,
                    "method": group[0].selector.method,
                    "bits": bits,
                    # The set that weighs the mean of the values left out; empty without this mean.
                    "left_out": group[0].selector.weights,
                    "budget": budget,
                    "tokens": f"{sum(result.tokens for result in group) / len(group):.2f}",
                    **{measure: f"{float(mean[head]):.6f}" for measure, mean in means.items()},
                    "queries": sum(result.queries for result in group),
                    **common,
                }
            )
    return rows
