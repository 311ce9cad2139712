"""RULER's multi-hop task: follow a value through a chain of variables."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from hata_sglang.errors import HataError
from hata_sglang.evaluation.haystack import count_tokens
from hata_sglang.evaluation.tasks.base import Sample
from hata_sglang.evaluation.tasks.fit import fitted, largest
from hata_sglang.evaluation.tasks.prose import NOISE
from hata_sglang.evaluation.tasks.stored import WORDING
from hata_sglang.evaluation.tasks.words import letters

NEW_TOKENS = 30
#: Tokens at most of the solved example that stands before the question.
EXAMPLE_TOKENS = 500 - NEW_TOKENS


@dataclass(frozen=True)
class VariableTracking:
    """A chain of assignments scattered over repeated noise; find all variables of its value.

    A solved example of up to `EXAMPLE_TOKENS` tokens, with variables of three letters, stands
    before the text, whose variables have five.

    Attributes
    ----------
    name : str
    """

    #: Variables of the chain: RULER's four hops.
    VARIABLES = 5

    name: str = "vt"

    def samples(self, count: int, length: int, tokenizer: Any, seed: int) -> list[Sample]:
        """See `Task.samples`."""
        lines = largest(
            lambda units: count_tokens(tokenizer, self._example(f"{seed}", units)),
            EXAMPLE_TOKENS,
            least=self.VARIABLES,
            most=None,
            start=self.VARIABLES + 1,
        )
        if lines < 0:
            raise HataError(
                f"tokenizer: expected a solved example of task {self.name} to have at most "
                f"{EXAMPLE_TOKENS} tokens, found more"
            )

        def build(index: int, units: int) -> Sample:
            key = f"{self.name} {seed} {index}"
            text, opening, variables = self._puzzle(key, units, letters_each=5)
            prompt = f"{self._example(key, lines)}\n\n{text}"
            return Sample(self.name, index, prompt, variables, NEW_TOKENS, opening)

        return fitted(
            build,
            count=count,
            length=length,
            tokenizer=tokenizer,
            least=self.VARIABLES,
        )

    def _example(self, key: str, units: int) -> str:
        text, opening, variables = self._puzzle(f"{key} example", units, letters_each=3)
        return f"{text} {opening} {' '.join(variables)}\n\n"

    def _puzzle(self, key: str, units: int, letters_each: int) -> tuple[str, str, tuple[str, ...]]:
        """Text with its question, opening of the answer, and the variables to be found."""
        facts, places = random.Random(f"{key} facts"), random.Random(f"{key} places")
        names = letters(facts, self.VARIABLES, letters_each, string.ascii_uppercase)
        (value,) = facts.sample(range(10_000, 100_000), 1)
        statements = [f"VAR {names[0]} = {value}"]
        statements += [f"VAR {b} = VAR {a}" for a, b in pairwise(names)]
        lines = [f"{NOISE}\n"] * units
        # In the order of the chain: reading once from the start is enough to solve it.
        at = sorted(places.sample(range(units), self.VARIABLES))
        for place, statement in zip(reversed(at), reversed(statements), strict=True):
            lines.insert(place, statement)
        text = WORDING["vt"].format(context=" ".join(lines), query=value)
        opening = WORDING["vt_opening"].format(count=self.VARIABLES, query=value)
        return text, opening, tuple(names)
