"""What a task is: a maker of samples, the same ones for every arm of a comparison."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable


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
    info : dict
        What else the results table says: ``depth``, ``length`` and so on.
    """

    task: str
    index: int
    prompt: str
    references: tuple[str, ...]
    new_tokens: int
    opening: str = ""
    tokens: int = 0
    info: dict[str, str | int | float] = field(default_factory=dict)

    def score(self, answer: str) -> float:
        """Share of the references that stand in an answer, whatever the case, as in RULER."""
        text = answer.lower()
        return sum(each.lower() in text for each in self.references) / len(self.references)


@runtime_checkable
class Task(Protocol):
    """A maker of samples; ours are frozen dataclasses whose fields are the task's settings."""

    name: str

    def samples(self, count: int, length: int, tokenizer: Any, seed: int) -> list[Sample]:
        """Make `count` samples; the same arguments give the same samples.

        Parameters
        ----------
        count : int
        length : int
            Tokens at most of a prompt in the chat template and its answer together.
        tokenizer : transformers tokenizer
            With a chat template.
        seed : int

        Returns
        -------
        list of Sample

        Raises
        ------
        HataError
            If a number is out of range, or `length` is too short for the task.
        """
        ...
