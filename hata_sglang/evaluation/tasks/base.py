"""What a task is: a maker of samples, the same ones for every arm of a comparison."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from hata_sglang.errors import HataError
from hata_sglang.evaluation.haystack import count_tokens


class TaskUnavailable(HataError):
    """A task's data file is not on this machine: the runner says so and skips the task."""


@dataclass(frozen=True)
class Sample:
    """One prompt, and how its answer is scored.

    Attributes
    ----------
    task : str
        Name in `TASKS`.
    index : int
        Place among the samples of one call, from 0.
    prompt : str
        What the user says. The server puts it into the model's chat template.
    references : tuple of str
        What the answer is compared with.
    new_tokens : int
        Tokens that the answer may have.
    metric : str
        Key of `hata_sglang.evaluation.metrics.METRICS`.
    tokens : int
        Length of the prompt in the chat template, `opening` included.
    opening : str
        Start of the assistant's answer, which the model goes on from. Default: none.
    info : dict
        What else the results table says: ``depth``, ``length`` and so on.
    """

    task: str
    index: int
    prompt: str
    references: tuple[str, ...]
    new_tokens: int
    metric: str
    tokens: int
    opening: str = ""
    info: dict[str, str | int | float] = field(default_factory=dict)


@runtime_checkable
class Task(Protocol):
    """A maker of samples.

    Ours are frozen dataclasses whose fields are the task's settings; ``path`` is the file or
    folder of the user's that a task reads.
    """

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
        TaskUnavailable
            If a file the task reads is missing.
        HataError
            If a number is out of range, `length` is too short for the task, or a file has not the
            expected content.
        """
        ...


class Registry(dict[str, Task]):
    """Tasks by name, with the settings of their definition."""

    def add(self, *tasks: Task) -> None:
        """Register tasks under their names; a name belongs to one task."""
        for task in tasks:
            if task.name in self:
                raise ValueError(f"task: expected a new name, found {task.name!r} twice")
            self[task.name] = task


#: Every task this package knows.
TASKS = Registry()


def make_task(name: str, **settings: Any) -> Task:
    """Give a registered task, with settings of its own in place of the registered ones.

    Parameters
    ----------
    name : str
        Key of `TASKS`.
    **settings
        Fields of that task, such as ``path``.

    Raises
    ------
    HataError
        If there is no such task, or it has no such setting or refuses its value.
    """
    if name not in TASKS:
        raise HataError(f"task: expected one of {', '.join(sorted(TASKS))}, found {name!r}")
    task = TASKS[name]
    known = {f.name for f in dataclasses.fields(task)} - {"name"}
    for setting in settings:
        if setting not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise HataError(f"setting of task {name}: expected one of {listed}, found {setting!r}")
    return dataclasses.replace(task, **settings)


def prompt_tokens(tokenizer: Any, prompt: str, opening: str = "") -> int:
    """Length of what a server prefills: `prompt` in the chat template, then `opening`."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    return count_tokens(tokenizer, text + opening)
