"""Haystacks that tasks share: a sentence of noise, and prose by the sentence."""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import cycle, islice
from pathlib import Path

from hata_sglang.errors import HataError
from hata_sglang.evaluation.tasks.base import TaskUnavailable
from hata_sglang.evaluation.tasks.stored import unpack

#: RULER's noise, repeated to any length (first used by passkey retrieval, arXiv 2305.16300).
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NOVEL = "pride-and-prejudice"
#: Sentences that a text needs at least to hide something in.
LEAST_SENTENCES = 20

_END = re.compile(r"[.!?][\"'”’)]*\s+(?=[\"'“‘(]?[A-Z0-9])")
_TITLES = frozenset(("Mr.", "Mrs.", "Ms.", "Dr.", "St.", "Messrs.", "Esq.", "Col.", "Capt."))


def split_sentences(text: str) -> tuple[str, ...]:
    """Split prose after full stops, question and exclamation marks; white space becomes one blank.

    Examples
    --------
    >>> split_sentences("Mr. Hill came.  He asked, 'Why?' Nobody knew.")
    ('Mr. Hill came.', "He asked, 'Why?'", 'Nobody knew.')
    """
    text = " ".join(text.split())
    found, begin = [], 0
    for end in _END.finditer(text):
        last_word = text[max(begin, end.start() - 8) : end.start() + 1].rsplit(" ", 1)[-1]
        if last_word.lstrip("\"'“‘(") in _TITLES:
            continue
        found.append(text[begin : end.end()].rstrip())
        begin = end.end()
    if begin < len(text):
        found.append(text[begin:])
    return tuple(found)


@lru_cache(maxsize=4)
def _sentences_of(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return split_sentences(unpack(f"{NOVEL}.txt.gz"))
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TaskUnavailable(
            f"path: expected a file of prose in UTF-8, found no file {path}"
        ) from None
    sentences = split_sentences(text)
    if len(sentences) < LEAST_SENTENCES:
        raise HataError(
            f"path: expected at least {LEAST_SENTENCES} sentences, found {len(sentences)} in {path}"
        )
    return sentences


def prose(count: int, path: Path | None = None) -> list[str]:
    """The first sentences of a text; after its last one it starts again.

    Parameters
    ----------
    count : int
    path : Path, optional
        A text in UTF-8. Default: the novel in this package (``data/README.md``).

    Raises
    ------
    TaskUnavailable
        If there is no such file.
    HataError
        If the text has too few sentences.
    """
    return list(islice(cycle(_sentences_of(None if path is None else Path(path))), count))
