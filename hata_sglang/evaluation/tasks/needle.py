"""A needle in a haystack at eleven depths, for a map of depth and length.

The fact and the prose are those of `hata_sglang.evaluation.hidden_fact`, which small models answer
with dense attention; RULER's needles are in `niah`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from hata_sglang.errors import HataError
from hata_sglang.evaluation.haystack import prompt_tokens, words
from hata_sglang.evaluation.hidden_fact import QUESTION, hide
from hata_sglang.evaluation.tasks.base import Sample


@dataclass(frozen=True)
class NeedleGrid:
    """One fact in generated prose; samples take the depths in turn.

    Ask for a multiple of eleven samples at each length of the map. Samples of one round
    over the depths share their prose and city, so that the prefix cache serves what stands before
    the earlier fact.

    Attributes
    ----------
    name : str
    """

    #: A reply in one sentence has 14 or 15 tokens; one with an introduction, about 25.
    NEW_TOKENS = 32
    #: Tokens of prose at least, about one sentence per depth.
    LEAST_PROSE = 300
    #: Shares of the prose before the fact.
    DEPTHS = tuple(step / 10 for step in range(11))

    name: str = "needle"

    def samples(self, count: int, length: int, tokenizer: Any, seed: int) -> list[Sample]:
        """See `Task.samples`. ``info["depth"]`` and ``info["length"]`` name the cell."""
        if count < 1:
            raise HataError(f"count: expected at least 1, found {count}")
        samples = []
        for index in range(count):
            turn, place = divmod(index, len(self.DEPTHS))
            key = f"{self.name} {seed} {turn}"
            city = random.Random(key).choice(words()["cities"])
            number = str(random.Random(f"{self.name} {seed} {index}").randrange(10_000, 100_000))
            least = prompt_tokens(tokenizer, f"\n\n{QUESTION.format(city=city)}")
            least += self.NEW_TOKENS + self.LEAST_PROSE
            if length < least:
                raise HataError(
                    f"length of task {self.name}: expected at least {least} tokens, found {length}"
                )
            depth = self.DEPTHS[place]
            fact = hide(tokenizer, length - self.NEW_TOKENS, key, city, number, depth)
            samples.append(
                Sample(
                    task=self.name,
                    index=index,
                    prompt=fact.prompt,
                    references=(number,),
                    new_tokens=self.NEW_TOKENS,
                    tokens=fact.tokens,
                    info={"length": length, "depth": depth},
                )
            )
        return samples
