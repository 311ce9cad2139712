"""A needle in a haystack at chosen depths: the cells of a heat map of depth and length.

The fact and the prose are those of `hata_sglang.evaluation.hidden_fact`, which small models answer
with dense attention; RULER's needles are in `niah`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from hata_sglang.errors import HataError
from hata_sglang.evaluation.haystack import document
from hata_sglang.evaluation.hidden_fact import CITIES, FACT, QUESTION
from hata_sglang.evaluation.tasks.base import Sample, prompt_tokens


@dataclass(frozen=True)
class NeedleGrid:
    """One fact in generated prose; samples take the depths in turn.

    Ask for a multiple of ``len(depths)`` samples at each length of the map. Samples of one round
    over the depths share their prose and city, so that the prefix cache serves what stands before
    the earlier fact.

    Attributes
    ----------
    name : str
    depths : tuple of float
        Shares of the prose before the fact, each from 0 to 1. Default: 11, evenly.
    """

    #: A reply in one sentence has 14 or 15 tokens; one with an introduction, about 25.
    NEW_TOKENS = 32
    #: Tokens of prose at least, about one sentence per depth.
    LEAST_PROSE = 300

    name: str = "needle"
    depths: tuple[float, ...] = tuple(step / 10 for step in range(11))

    def __post_init__(self) -> None:
        if not self.depths or not all(0 <= depth <= 1 for depth in self.depths):
            raise ValueError(
                f"depths of task {self.name}: expected numbers from 0 to 1, found {self.depths}"
            )

    def samples(self, count: int, length: int, tokenizer: Any, seed: int) -> list[Sample]:
        """See `Task.samples`. ``info["depth"]`` and ``info["length"]`` name the cell."""
        if count < 1:
            raise HataError(f"count: expected at least 1, found {count}")
        samples = []
        for index in range(count):
            turn, place = divmod(index, len(self.depths))
            depth = self.depths[place]
            city = random.Random(f"{self.name} {seed} {turn}").choice(CITIES)
            number = str(random.Random(f"{self.name} {seed} {index}").randrange(10_000, 100_000))
            question = f"\n\n{QUESTION.format(city=city)}"
            room = length - self.NEW_TOKENS - prompt_tokens(tokenizer, question)
            if room < self.LEAST_PROSE:
                raise HataError(
                    f"length of task {self.name}: expected at least "
                    f"{length - room + self.LEAST_PROSE} tokens, found {length}"
                )
            text = document(
                tokenizer,
                room,
                f"{self.name} {seed} {turn}",
                [(depth, FACT.format(city=city, number=number))],
            )
            prompt = f"{text}{question}"
            samples.append(
                Sample(
                    task=self.name,
                    index=index,
                    prompt=prompt,
                    references=(number,),
                    new_tokens=self.NEW_TOKENS,
                    metric="string_match_all",
                    tokens=prompt_tokens(tokenizer, prompt),
                    info={"length": length, "depth": depth},
                )
            )
        return samples
