"""RULER's two aggregation tasks: which words of a long list occur most often."""

from __future__ import annotations

import math
import random
import string
from dataclasses import dataclass
from typing import Any

from hata_sglang.evaluation.tasks.base import Sample
from hata_sglang.evaluation.tasks.fit import fitted
from hata_sglang.evaluation.tasks.stored import WORDING
from hata_sglang.evaluation.tasks.words import letters, vocabulary

#: Length from which `CommonWords` repeats words as often as RULER does; shorter lists would hold
#: too few words.
FULL_LENGTH = 4096


@dataclass(frozen=True)
class CommonWords:
    """A numbered, shuffled list in which ten words stand more often than all others.

    A solved example with 40 words (20 below `FULL_LENGTH` tokens) stands before it.

    Attributes
    ----------
    name : str
    """

    NEW_TOKENS = 120
    #: Words to be found. The question says ten.
    COMMON = 10

    name: str = "cwe"

    def samples(self, count: int, length: int, tokenizer: Any, seed: int) -> list[Sample]:
        """See `Task.samples`."""
        short = length < FULL_LENGTH
        # Times that a common word and another one stand in the list.
        often, seldom = (6, 1) if short else (30, 3)
        example_words, *example_times = (20, 3, 1) if short else (40, 10, 3)

        def build(index: int, units: int) -> Sample:
            # Dice of their own: the words to be found do not depend on the length of the list.
            key = f"{self.name} {seed} {index}"
            words = list(vocabulary())
            random.Random(f"{key} words").shuffle(words)
            shown, words = words[:example_words], words[example_words:]
            example = self._list(shown, *example_times, random.Random(f"{key} example"))
            full = self._list(
                words[: self.COMMON + units], often, seldom, random.Random(f"{key} order")
            )
            solved = " ".join(f"{n}. {w}" for n, w in enumerate(shown[: self.COMMON], 1))
            return Sample(
                task=self.name,
                index=index,
                prompt=f"{example} {WORDING['cwe_opening']} {solved}\n{full}",
                references=tuple(words[: self.COMMON]),
                new_tokens=self.NEW_TOKENS,
                opening=WORDING["cwe_opening"],
            )

        return fitted(
            build,
            count=count,
            length=length,
            tokenizer=tokenizer,
            least=1,
            most=len(vocabulary()) - example_words - self.COMMON,
        )

    def _list(self, words: list[str], often: int, seldom: int, dice: random.Random) -> str:
        entries = words[: self.COMMON] * often + words[self.COMMON :] * seldom
        dice.shuffle(entries)
        context = " ".join(f"{n}. {word}" for n, word in enumerate(entries, 1))
        return WORDING["cwe"].format(context=context)


@dataclass(frozen=True)
class FrequentWords:
    """Coded words of six random letters whose frequencies follow a zeta distribution.

    The word of rank k stands in a text of n words n / (k**2 zeta(2)) times, rounded down. Rank 1
    is noise (three dots); ranks 2 to 4 are the answer. There are length // 50 ranks.

    Attributes
    ----------
    name : str
    """

    NEW_TOKENS = 50
    #: Words of text from which ranks 4 and 5 differ: n / 16 - n / 25 is above zeta(2).
    LEAST_WORDS = 74

    name: str = "fwe"

    def samples(self, count: int, length: int, tokenizer: Any, seed: int) -> list[Sample]:
        """See `Task.samples`."""
        ranks = max(length // 50, 5)

        def build(index: int, units: int) -> Sample:
            key = f"{self.name} {seed} {index}"
            coded = letters(random.Random(f"{key} words"), ranks - 1, 6, string.ascii_lowercase)
            words: list[str] = []
            for rank, word in enumerate(["...", *coded], 1):
                words += [word] * int(units / (rank**2 * math.pi**2 / 6))
            random.Random(f"{key} order").shuffle(words)
            return Sample(
                task=self.name,
                index=index,
                prompt=WORDING["fwe"].format(context=" ".join(words)),
                references=tuple(coded[:3]),
                new_tokens=self.NEW_TOKENS,
                opening=WORDING["fwe_opening"],
            )

        return fitted(
            build,
            count=count,
            length=length,
            tokenizer=tokenizer,
            least=self.LEAST_WORDS,
        )
