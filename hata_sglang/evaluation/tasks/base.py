"""One prompt of a task, the same for every arm of a comparison."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """One prompt, and how its answer is scored.

    Attributes
    ----------
    task : str
        Name in `hata_sglang.evaluation.tasks.TASKS`.
    index : int
        Place among the samples of one call, from 0.
    prompt : str
        What the user says. The server puts it into the model's chat template.
    references : tuple of str
        What the answer is compared with.
    new_tokens : int
        Tokens that the answer may have.
    opening : str
        Start of the assistant's answer, which the model goes on from. Default: none.
    tokens : int
        Length of the prompt in the chat template, `opening` included.
    depth : float or None
        Share of the haystack before the answer, where it is one place.
    """

    task: str
    index: int
    prompt: str
    references: tuple[str, ...]
    new_tokens: int
    opening: str = ""
    tokens: int = 0
    depth: float | None = None

    def score(self, answer: str) -> float:
        """Share of the references that stand in an answer, whatever the case, as in RULER."""
        text = answer.lower()
        return sum(each.lower() in text for each in self.references) / len(self.references)
