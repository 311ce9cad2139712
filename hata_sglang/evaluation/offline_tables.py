"""Results of ``eval offline`` as rows of a CSV, one per KV head, and as a table of averages."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import fields
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from hata_sglang.evaluation.offline_run import Result, Study
from hata_sglang.evaluation.report import show
from hata_sglang.evaluation.selection_quality import Quality
from hata_sglang.evaluation.statistics import LEVEL, estimate

MEASURES = tuple(field.name for field in fields(Quality))


def csv_rows(
    results: Sequence[Result],
    study: Study,
    model: str,
    length: int,
    sequences: int,
    dense: Collection[int],
) -> list[dict[str, Any]]:
    """One row per selector, budget, layer and KV head: means over queries, then over sequences.

    Parameters
    ----------
    results : sequence of Result
    study : Study
    model : str
    length : int
        Of the sequences, in tokens, at most.
    sequences : int
    dense : collection of int
        Layers that serving leaves dense, for the column of this name.
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
                    "model": model,
                    "layer": layer,
                    "head": head,
                    "dense": int(layer in dense),
                    "selector": name,
                    "method": group[0].selector.method,
                    "bits": bits,
                    "budget": budget,
                    "tokens": f"{sum(result.tokens for result in group) / len(group):.2f}",
                    "sink": study.sink,
                    "recent": study.recent,
                    "length": length,
                    **{measure: f"{float(mean[head]):.6f}" for measure, mean in means.items()},
                    "queries": sum(result.queries for result in group),
                    "sequences": sequences,
                    "seed": study.seed,
                }
            )
    return rows


def averages_table(results: Sequence[Result], study: Study, dense: Collection[int]) -> Table:
    """Averages over the layers that serving makes sparse, their KV heads and all sequences.

    The intervals are bootstrapped over pairs of sequence and layer.
    """
    title = f"Averages over layers and KV heads [{LEVEL:.0%} interval over sequences x layers]"
    table = Table(title=title.replace("[", r"\["), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("selector", overflow="fold")
    for name in ("bits", "budget", "tokens", *MEASURES):
        table.add_column(name.replace("_", " "))
    grouped: dict[tuple[str, str, str], list[Result]] = {}
    # Budget by budget: selectors are compared under the same one.
    for budget in map(str, study.budgets):
        for result in results:
            if str(result.budget) == budget and result.layer not in dense:
                key = (result.selector.name, result.selector.bits, budget)
                grouped.setdefault(key, []).append(result)
    for key, group in grouped.items():
        cells = [
            show(estimate([[float(getattr(each.quality, name).mean()) for each in group]]), 1.0, 3)
            for name in MEASURES
        ]
        tokens = sum(result.tokens for result in group) / len(group)
        table.add_row(*key, f"{tokens:.0f}", *(cell.replace("[", r"\[") for cell in cells))
    return table
