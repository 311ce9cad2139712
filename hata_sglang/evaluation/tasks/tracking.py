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
from hata_sglang.evaluation.tasks.fit import Draft, fitted, largest
from hata_sglang.evaluation.tasks.prose import NOISE
from hata_sglang.evaluation.tasks.stored import WORDING
from hata_sglang.evaluation.tasks.words import letters

NEW_TOKENS = 30
#: Tokens at most of the solved example that stands before the question.
EXAMPLE_TOKENS = 500 - NEW_TOKENS


@dataclass(frozen=True)
class VariableTracking:
    """Chains of assignments scattered over repeated noise; find all variables of one value.

    A solved example of up to `EXAMPLE_TOKENS` tokens, with variables of three letters, stands
    before the text, whose variables have five.

    Attributes
    ----------
    name : str
    num_chains : int, default 1
        Chains in the text; the question is about the first.
    num_hops : int, default 4
        Assignments of a variable to the next one of its chain.
    """

    name: str = "vt"
    num_chains: int = 1
    num_hops: int = 4

    def __post_init__(self) -> None:
        for setting in ("num_chains", "num_hops"):
            if getattr(self, setting) < 1:
                raise ValueError(
                    f"{setting} of task {self.name}: expected at least 1, "
                    f"found {getattr(self, setting)}"
                )

    def samples(self, count: int, length: int, tokenizer: Any, seed: int) -> list[Sample]:
        """See `Task.samples`."""
        least = self.num_hops + 1
        lines = largest(
            lambda units: count_tokens(tokenizer, self._example(f"{seed}", units)),
            EXAMPLE_TOKENS,
            least=least,
            most=None,
            start=least + 1,
        )
        if lines < 0:
            raise HataError(
                f"num_chains and num_hops of task {self.name}: expected an example within "
                f"{EXAMPLE_TOKENS} tokens, found {self.num_chains} and {self.num_hops}, "
                "which make a longer one"
            )

        def build(index: int, units: int) -> Draft:
            key = f"{self.name} {seed} {index}"
            text, opening, variables = self._puzzle(key, units, letters_each=5)
            prompt = f"{self._example(key, lines)}\n\n{text}"
            return Draft(prompt, variables, opening)

        return fitted(
            self.name,
            build,
            count=count,
            length=length,
            tokenizer=tokenizer,
            new_tokens=NEW_TOKENS,
            metric="string_match_all",
            least=least,
        )

    def _example(self, key: str, units: int) -> str:
        text, opening, variables = self._puzzle(f"{key} example", units, letters_each=3)
        return f"{text} {opening} {' '.join(variables)}\n\n"

    def _puzzle(self, key: str, units: int, letters_each: int) -> tuple[str, str, tuple[str, ...]]:
        """Text with its question, opening of the answer, and the variables to be found."""
        facts, places = random.Random(f"{key} facts"), random.Random(f"{key} places")
        per_chain = self.num_hops + 1
        names = letters(facts, self.num_chains * per_chain, letters_each, string.ascii_uppercase)
        values = facts.sample(range(10_000, 100_000), self.num_chains)
        lines = [f"{NOISE}\n"] * units
        for chain, value in enumerate(values):
            own = names[chain * per_chain :][:per_chain]
            statements = [f"VAR {own[0]} = {value}"]
            statements += [f"VAR {b} = VAR {a}" for a, b in pairwise(own)]
            # In the order of the chain: reading once from the start is enough to solve it.
            at = sorted(places.sample(range(len(lines)), per_chain))
            for place, statement in zip(reversed(at), reversed(statements), strict=True):
                lines.insert(place, statement)
        text = WORDING["vt"].format(context=" ".join(lines), query=values[0])
        opening = WORDING["vt_opening"].format(count=per_chain, query=values[0])
        return text, opening, tuple(names[:per_chain])
