"""RULER's multi-hop task: follow a value through a chain of variables."""

from __future__ import annotations

import random
import string
from itertools import pairwise

from hata_sglang.evaluation.tasks.base import Sample, Task
from hata_sglang.evaluation.tasks.material import NOISE, WORDING, letters

#: Variables of the chain: RULER's four hops.
VARIABLES = 5
#: Of the solved example before the question, which RULER gives 500 tokens with its answer.
EXAMPLE_LINES = 12


class VariableTracking(Task):
    """A chain of assignments scattered over repeated noise; find all variables of its value.

    A solved example with variables of three letters stands before the text, whose variables have
    five.
    """

    name = "vt"
    least = VARIABLES

    def build(self, key: str, units: int, length: int) -> Sample:
        """See `Task.build`; a unit is a line of noise."""
        example, start, solution = _puzzle(f"{key} example", EXAMPLE_LINES, letters_each=3)
        text, opening, variables = _puzzle(key, units, letters_each=5)
        prompt = f"{example} {start} {' '.join(solution)}\n\n\n\n{text}"
        return Sample(self.name, prompt, variables, new_tokens=30, opening=opening)


def _puzzle(key: str, units: int, letters_each: int) -> tuple[str, str, tuple[str, ...]]:
    """Text with its question, opening of the answer, and the variables to be found."""
    facts, places = random.Random(f"{key} facts"), random.Random(f"{key} places")
    names = letters(facts, VARIABLES, letters_each, string.ascii_uppercase)
    value = facts.randrange(10_000, 100_000)
    statements = [f"VAR {names[0]} = {value}"]
    statements += [f"VAR {b} = VAR {a}" for a, b in pairwise(names)]
    lines = [f"{NOISE}\n"] * units
    # In the order of the chain: reading once from the start is enough to solve it.
    at = sorted(places.sample(range(units), VARIABLES))
    for place, statement in zip(reversed(at), reversed(statements), strict=True):
        lines.insert(place, statement)
    text = WORDING["vt"].format(context=" ".join(lines), query=value)
    opening = WORDING["vt_opening"].format(count=VARIABLES, query=value)
    return text, opening, tuple(names)
