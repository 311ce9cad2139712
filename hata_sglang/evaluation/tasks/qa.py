"""RULER's two question-answering tasks: a data set's own paragraphs among many others.

The files are not part of this package. RULER takes SQuAD 2.0's ``dev-v2.0.json`` (CC BY-SA 4.0)
and HotpotQA's ``hotpot_dev_distractor_v1.json`` (CC BY-SA 4.0); either layout is read by both
tasks.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hata_sglang.errors import HataError
from hata_sglang.evaluation.tasks.base import Sample, TaskUnavailable
from hata_sglang.evaluation.tasks.fit import fitted
from hata_sglang.evaluation.tasks.stored import WORDING

NEW_TOKENS = 32


@dataclass(frozen=True)
class Question:
    """One question over the documents of its file; numbers are places in that list.

    Attributes
    ----------
    text : str
    answers : tuple of str
    needed : tuple of int
        Documents that have to be there.
    near : tuple of int
        Documents of the same article: the first ones to be added.
    """

    text: str
    answers: tuple[str, ...]
    needed: tuple[int, ...]
    near: tuple[int, ...]


def parse(data: Any) -> tuple[list[Question], list[str]]:
    """Give questions with an answer, and every document once, of SQuAD's or HotpotQA's layout.

    Raises
    ------
    ValueError
        If the layout is neither.
    """
    try:
        if isinstance(data, dict):
            return _parse_squad(data["data"])
        return _parse_hotpot(data)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            "expected the layout of SQuAD 2.0 or of HotpotQA, found one that differs at "
            f"{type(error).__name__}: {error}"
        ) from error


def _parse_squad(articles: Any) -> tuple[list[Question], list[str]]:
    documents = sorted({p["context"] for article in articles for p in article["paragraphs"]})
    place = {text: n for n, text in enumerate(documents)}
    questions = []
    for article in articles:
        siblings = list(dict.fromkeys(place[p["context"]] for p in article["paragraphs"]))
        for paragraph in article["paragraphs"]:
            own = place[paragraph["context"]]
            for qa in paragraph["qas"]:
                # SQuAD 1.1 has no such key, and an answer to everything.
                if qa.get("is_impossible", False):
                    continue
                answers = tuple(dict.fromkeys(answer["text"] for answer in qa["answers"]))
                near = tuple(n for n in siblings if n != own)
                questions.append(Question(qa["question"], answers, (own,), near))
    return questions, documents


def _parse_hotpot(entries: Any) -> tuple[list[Question], list[str]]:
    def texts(entry: Any) -> list[str]:
        return [f"{title}\n{''.join(sentences)}" for title, sentences in entry["context"]]

    documents = sorted({text for entry in entries for text in texts(entry)})
    place = {text: n for n, text in enumerate(documents)}
    return [
        Question(
            entry["question"],
            (entry["answer"],),
            tuple(dict.fromkeys(place[text] for text in texts(entry))),
            (),
        )
        for entry in entries
    ], documents


@lru_cache(maxsize=2)
def _read(path: Path) -> tuple[list[Question], list[str]]:
    try:
        questions, documents = parse(json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise HataError(f"path: {path}: expected JSON, found {error}") from error
    except ValueError as error:
        raise HataError(f"path: {path}: {error}") from error
    if not questions:
        raise HataError(f"path: {path}: expected questions with an answer, found none")
    return questions, documents


@dataclass(frozen=True)
class QuestionAnswering:
    """Questions over a data set's documents, numbered and in random order.

    Attributes
    ----------
    name : str
    source : str
        The file that `path` is expected to be.
    path : Path, optional
        The data set on this machine. Default: none; the task is then unavailable.
    """

    name: str
    source: str
    path: Path | None = None

    def samples(self, count: int, length: int, tokenizer: Any, seed: int) -> list[Sample]:
        """See `Task.samples`. ``info["documents"]`` is the number of documents in the prompt.

        Raises
        ------
        HataError
            Also if there are fewer than `count` questions, or the documents that one of them
            needs are longer than `length`.
        """
        if self.path is None or not Path(self.path).is_file():
            found = "none" if self.path is None else f"no file {self.path}"
            raise TaskUnavailable(
                f"path of task {self.name}: expected the file {self.source}, found {found}"
            )
        questions, documents = _read(Path(self.path))
        if count > len(questions):
            raise HataError(
                f"count of task {self.name}: expected at most {len(questions)}, the questions in "
                f"{self.path}, found {count}"
            )
        # An order of all questions: the first ones are the same for any count.
        order = list(range(len(questions)))
        random.Random(f"{self.name} {seed}").shuffle(order)

        def build(index: int, units: int) -> Sample:
            question = questions[order[index]]
            dice = random.Random(f"{self.name} {seed} {index}")
            chosen = self._others(question, len(documents), dice)[:units]
            chosen += question.needed
            dice.shuffle(chosen)
            context = "\n\n".join(
                WORDING["qa_document"].format(number=number, document=documents[n])
                for number, n in enumerate(chosen, 1)
            )
            return Sample(
                task=self.name,
                index=index,
                prompt=WORDING["qa"].format(context=context, query=question.text),
                references=question.answers,
                new_tokens=NEW_TOKENS,
                any_of=True,
                opening=WORDING["qa_opening"],
                info={"documents": len(chosen)},
            )

        needed = max(len(questions[n].needed) for n in order[:count])
        return fitted(
            build,
            count=count,
            length=length,
            tokenizer=tokenizer,
            least=0,
            most=len(documents) - needed,
        )

    @staticmethod
    def _others(question: Question, total: int, dice: random.Random) -> list[int]:
        """Every other document: those of the same article first, both parts in random order."""
        near = list(question.near)
        dice.shuffle(near)
        taken = {*question.needed, *near}
        far = [n for n in range(total) if n not in taken]
        dice.shuffle(far)
        return near + far
