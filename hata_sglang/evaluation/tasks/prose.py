"""Haystacks that tasks share: a sentence of noise, and prose by the sentence."""

from __future__ import annotations

import re
from functools import cache
from itertools import cycle, islice

from hata_sglang.evaluation.tasks.stored import unpack

#: RULER's noise, repeated to any length (first used by passkey retrieval, arXiv 2305.16300).
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NOVEL = "pride-and-prejudice"

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


@cache
def _sentences() -> tuple[str, ...]:
    return split_sentences(unpack(f"{NOVEL}.txt.gz"))


def prose(count: int) -> list[str]:
    """The first sentences of the novel in this package; after its last one it starts again."""
    return list(islice(cycle(_sentences()), count))
