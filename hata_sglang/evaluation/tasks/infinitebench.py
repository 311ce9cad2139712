"""InfiniteBench from local files (Zhang et al., arXiv 2402.13718).

The files are the published ones, ``<task>.jsonl``, whose records have id, context, input, answer
and options. What a prompt looks like is in ``data/infinitebench.yaml``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from hata_sglang.errors import HataError
from hata_sglang.evaluation.tasks.base import TASKS, Sample, prompt_tokens
from hata_sglang.evaluation.tasks.local_files import (
    Record,
    choose,
    cut_middle,
    definitions,
    read_records,
)

FIELDS = ("id", "context", "input", "answer", "options")
DEFINITIONS = definitions("infinitebench")
LETTERS = "ABCD"
#: Sets whose question has four options.
WITH_OPTIONS = ("longbook_choice_eng", "code_debug")


def _match(pattern: str, record: Record, what: str) -> re.Match[str]:
    match = re.search(pattern, record["input"])
    if match is None:
        raise HataError(
            f"record {record['id']}: expected {what} in its input, found {record['input']!r}"
        )
    return match


def slots(dataset: str, record: Record) -> dict[str, str]:
    """What a record puts into its set's template."""
    filled = {"context": record["context"], "input": record["input"]}
    if dataset in WITH_OPTIONS:
        filled.update(zip(LETTERS, record["options"], strict=True))
    elif dataset == "code_run":
        call = _match(r"(func_\d+)\(-?\d+\)", record, "a call such as func_1(5)")
        filled.update(func=call[1], func_call=call[0])
    elif dataset == "math_find":
        wanted = _match(r"The \w+ number", record, "'The ... number'")[0].lower()
        filled["prefix"] = f"What is {wanted} in the following list?"
    return filled


def references(dataset: str, record: Record) -> tuple[str, ...]:
    """The label of a record, as `hata_sglang.evaluation.metrics_infinitebench` expects it."""
    answer = record["answer"] if isinstance(record["answer"], list) else [record["answer"]]
    if answer and isinstance(answer[0], list):  # math_calc in some copies
        (answer,) = answer
    if dataset in WITH_OPTIONS and len(answer) == 1:
        answer = [answer[0], LETTERS[record["options"].index(answer[0])]]
    return tuple(str(each) for each in answer)


@dataclass(frozen=True)
class InfiniteBench:
    """One set of InfiniteBench.

    Attributes
    ----------
    name : str
        ``infinitebench/<set>``.
    path : str
        Folder of the JSONL files. Default: none, and the task is unavailable.
    """

    name: str
    path: str = ""

    @property
    def dataset(self) -> str:
        """Name of the set in ``data/infinitebench.yaml``."""
        return self.name.partition("/")[2]

    def samples(self, count: int, length: int, tokenizer: Any, seed: int) -> list[Sample]:
        """Records of the file as prompts, the middle cut out of those that are too long.

        See `hata_sglang.evaluation.tasks.base.Task.samples`. ``info["record"]`` is the record's
        id.
        """
        definition = DEFINITIONS[self.dataset]
        records = read_records(self.name, self.path, f"{self.dataset}.jsonl", FIELDS)
        samples = []
        for index, (_, record) in enumerate(choose(records, count, seed)):
            filled = slots(self.dataset, record)
            opening = definition["opening"].format(**filled)

            def tokens_of(prompt: str, opening: str = opening) -> int:
                return prompt_tokens(tokenizer, prompt, opening)

            prompt, tokens = cut_middle(
                definition["prompt"].format(**filled),
                length - definition["new_tokens"],
                tokenizer,
                tokens_of,
            )
            samples.append(
                Sample(
                    task=self.name,
                    index=index,
                    prompt=prompt,
                    references=references(self.dataset, record),
                    new_tokens=definition["new_tokens"],
                    metric=definition["metric"],
                    tokens=tokens,
                    opening=opening,
                    info={"length": length, "record": str(record["id"])},
                )
            )
        return samples


TASKS.add(*(InfiniteBench(f"infinitebench/{name}") for name in DEFINITIONS))
