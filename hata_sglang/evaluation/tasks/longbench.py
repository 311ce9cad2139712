"""LongBench and LongBench-E from local files (Bai et al., arXiv 2308.14508).

The files are those of the published ``data.zip``: one JSONL per set, ``<set>.jsonl`` and
``<set>_e.jsonl``, whose records have input, context, answers, length, dataset, language,
all_classes and _id. What a prompt looks like is in ``data/longbench.yaml``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hata_sglang.evaluation.haystack import count_tokens
from hata_sglang.evaluation.tasks.base import TASKS, Sample, prompt_tokens
from hata_sglang.evaluation.tasks.local_files import (
    choose,
    cut_middle,
    definitions,
    read_records,
)

FIELDS = ("input", "context", "answers", "length", "all_classes", "_id")
DEFINITIONS = definitions("longbench")


@dataclass(frozen=True)
class LongBench:
    """One set of LongBench.

    Attributes
    ----------
    name : str
        ``longbench/<set>`` or ``longbench-e/<set>``.
    path : str
        Folder of the JSONL files. Default: none, and the task is unavailable.
    """

    name: str
    path: str = ""

    @property
    def dataset(self) -> str:
        """Name of the set in ``data/longbench.yaml``."""
        return self.name.partition("/")[2]

    @property
    def file(self) -> str:
        """Name of the set's file."""
        return f"{self.dataset}{'_e' if self.name.startswith('longbench-e/') else ''}.jsonl"

    def samples(self, count: int, length: int, tokenizer: Any, seed: int) -> list[Sample]:
        """Records of the file as prompts, the middle cut out of those that are too long.

        See `hata_sglang.evaluation.tasks.base.Task.samples`. ``info["record"]`` is the record's
        ``_id``, ``info["words"]`` its length as LongBench-E counts it (buckets of 4,000 and
        8,000), and ``info["chat"]`` is 0 for the sets that go without a chat template.
        """
        definition = DEFINITIONS[self.dataset]
        records = read_records(self.name, self.path, self.file, FIELDS)
        room = length - definition["new_tokens"]

        def tokens_of(prompt: str) -> int:
            if definition["chat"]:
                return prompt_tokens(tokenizer, prompt)
            return count_tokens(tokenizer, prompt)

        samples = []
        for index, (_, record) in enumerate(choose(records, count, seed)):
            prompt, tokens = cut_middle(
                definition["prompt"].format(**record), room, tokenizer, tokens_of
            )
            samples.append(
                Sample(
                    task=self.name,
                    index=index,
                    prompt=prompt,
                    references=tuple(record["answers"]),
                    new_tokens=definition["new_tokens"],
                    metric=definition["metric"],
                    tokens=tokens,
                    all_classes=tuple(record["all_classes"] or ()),
                    info={
                        "length": length,
                        "record": record["_id"],
                        "words": record["length"],
                        "chat": int(definition["chat"]),
                    },
                )
            )
        return samples


TASKS.add(*(LongBench(f"longbench/{name}") for name in DEFINITIONS))
TASKS.add(*(LongBench(f"longbench-e/{name}") for name, each in DEFINITIONS.items() if each["e"]))
