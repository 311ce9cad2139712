"""RULER's two aggregation tasks: which words of a long list occur most often."""

from __future__ import annotations

import math
import random
import string

from hata_sglang.evaluation.tasks.base import Sample, Task
from hata_sglang.evaluation.tasks.material import WORDING, letters, vocabulary

#: Length from which `CommonWords` repeats words as often as RULER does; shorter lists would hold
#: too few words.
FULL_LENGTH = 4096
#: Words that `CommonWords` asks for. Its question says ten.
COMMON = 10
#: Words of the solved example before its list, at most.
EXAMPLE = 40


class CommonWords(Task):
    """A numbered, shuffled list in which ten words stand more often than all others.

    A solved example with 40 words (20 below `FULL_LENGTH` tokens) stands before it.
    """

    name = "cwe"
    most = len(vocabulary()) - EXAMPLE - COMMON

    def build(self, key: str, units: int, length: int) -> Sample:
        """See `Task.build`; a unit is a word that is not to be found."""
        # Times that a common word and another one stand in the list, and in the example.
        if length < FULL_LENGTH:
            size, times, example_times = EXAMPLE // 2, (6, 1), (3, 1)
        else:
            size, times, example_times = EXAMPLE, (30, 3), (10, 3)
        words = list(vocabulary())
        random.Random(f"{key} words").shuffle(words)
        shown, words = words[:size], words[size:]
        example = _numbered(shown, *example_times, random.Random(f"{key} example"))
        listed = _numbered(words[: COMMON + units], *times, random.Random(f"{key} order"))
        solved = " ".join(f"{n}. {word}" for n, word in enumerate(shown[:COMMON], 1))
        return Sample(
            self.name,
            prompt=f"{example} {WORDING['cwe_opening']} {solved}\n{listed}",
            references=tuple(words[:COMMON]),
            new_tokens=120,
            opening=WORDING["cwe_opening"],
        )


def _numbered(words: list[str], often: int, seldom: int, dice: random.Random) -> str:
    """The question with a list in which the first words stand often."""
    entries = words[:COMMON] * often + words[COMMON:] * seldom
    dice.shuffle(entries)
    context = " ".join(f"{n}. {word}" for n, word in enumerate(entries, 1))
    return WORDING["cwe"].format(context=context)


class FrequentWords(Task):
    """Coded words of six random letters whose frequencies follow a zeta distribution.

    The word of rank k stands in a text of n words n / (k**2 zeta(2)) times, rounded down. Rank 1
    is noise (three dots); ranks 2 to 4 are the answer. There are length // 50 ranks.
    """

    name = "fwe"
    #: Words of text from which ranks 4 and 5 differ: n / 16 - n / 25 is above zeta(2).
    least = 74

    def build(self, key: str, units: int, length: int) -> Sample:
        """See `Task.build`; a unit is a word of text."""
        ranks = max(length // 50, 5)
        coded = letters(random.Random(f"{key} words"), ranks - 1, 6, string.ascii_lowercase)
        words: list[str] = []
        for rank, word in enumerate(["...", *coded], 1):
            words += [word] * int(units / (rank**2 * math.pi**2 / 6))
        random.Random(f"{key} order").shuffle(words)
        return Sample(
            self.name,
            prompt=WORDING["fwe"].format(context=" ".join(words)),
            references=tuple(coded[:3]),
            new_tokens=50,
            opening=WORDING["fwe_opening"],
        )
