"""Scores of an answer against its references, from 0 to 1, as RULER's evaluation computes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def string_match_all(prediction: str, references: Sequence[str]) -> float:
    """Share of the references that stand in the prediction, whatever the case."""
    text = prediction.lower()
    return sum(reference.lower() in text for reference in references) / len(references)


def string_match_part(prediction: str, references: Sequence[str]) -> float:
    """1 if any reference stands in the prediction, whatever the case (RULER's questions)."""
    text = prediction.lower()
    return float(any(reference.lower() in text for reference in references))


#: Every metric by the name that `Sample.metric` gives.
METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "string_match_all": string_match_all,
    "string_match_part": string_match_part,
}
