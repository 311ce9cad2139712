"""RULER's eight retrieval tasks: needles in a haystack, "magic" values of keys to be looked up.

Settings after table 2 and appendix A of arXiv 2404.06654 and its repository's ``synthetic.yaml``.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from hata_sglang.evaluation.tasks.base import Sample, Task
from hata_sglang.evaluation.tasks.material import (
    MOST_KEYS,
    NOISE,
    WORDING,
    numbers,
    prose,
    uuids,
    word_keys,
)

NEW_TOKENS = 128
#: Shares of the prose before a needle: 40, evenly from none to all.
DEPTHS = tuple(step / 39 for step in range(40))


@dataclass(frozen=True)
class NeedleTask(Task):
    """Needles in a haystack, and a question about some of them.

    Attributes
    ----------
    name : str
    haystack : {"noise", "prose", "needles"}
        A repeated sentence; sentences of a text; needles with other keys.
    keys : {"words", "uuids"}
        What keys look like: an adjective and a noun, or a UUID.
    values : {"numbers", "uuids"}
        What values look like: seven digits, or a UUID.
    num_keys : int
        Keys that the prose hides.
    num_values : int
        Values of each key; the answer is all of them.
    num_queries : int
        Keys the question asks for.
    """

    name: str
    haystack: Literal["noise", "prose", "needles"]
    keys: Literal["words", "uuids"] = "words"
    values: Literal["numbers", "uuids"] = "numbers"
    num_keys: int = 1
    num_values: int = 1
    num_queries: int = 1

    @property
    def needles(self) -> int:
        """Needles of the hidden keys, one per value."""
        return self.num_keys * self.num_values

    @property
    def least(self) -> int:
        """See `Task`."""
        return max(self.needles, 4)

    @property
    def most(self) -> int | None:
        """See `Task`."""
        limited = self.haystack == "needles" and self.keys == "words"
        return MOST_KEYS - self.num_keys if limited else None

    def build(self, key: str, units: int, length: int) -> Sample:
        """See `Task.build`; a unit is a line of noise, a sentence of prose or another needle."""
        # Two dice: what is hidden stays the same while the amount of haystack is searched for.
        facts, places = random.Random(f"{key} facts"), random.Random(f"{key} places")
        make_keys = word_keys if self.keys == "words" else uuids
        make_values = numbers if self.values == "numbers" else uuids
        keys, values = make_keys(facts, self.num_keys), make_values(facts, self.needles)
        owners = [keys[n // self.num_values] for n in range(self.needles)]
        needles = self._sentences(owners, values)
        facts.shuffle(needles)
        asked = facts.sample(range(self.num_keys), self.num_queries)

        if self.haystack == "prose":
            lines = prose(units)
            # Depths are shares of the text, drawn without repetition, and rounded down.
            at = sorted(int(units * depth) for depth in places.sample(DEPTHS, self.needles))
        else:
            lines = [NOISE] * units
            if self.haystack == "needles":
                # Some to spare: a hay needle with a hidden key would be a second answer.
                spare = make_keys(places, units + len(keys))
                others = [other for other in spare if other not in keys][:units]
                lines = self._sentences(others, make_values(places, units))
            at = sorted(places.sample(range(units), self.needles))
        for place, needle in zip(reversed(at), reversed(needles), strict=True):
            lines.insert(place, needle)

        one = self.num_queries * self.num_values == 1
        kind = self.values[:-1] if one else self.values
        queries = [keys[n] for n in asked]
        query = queries[0] if len(queries) == 1 else f"{', '.join(queries[:-1])}, and {queries[-1]}"
        template = WORDING["niah_one"] if one else WORDING["niah_many"]
        opening = WORDING["niah_one_opening"] if one else WORDING["niah_many_opening"]
        context = (" " if self.haystack == "prose" else "\n").join(lines)
        return Sample(
            self.name,
            prompt=template.format(kind=kind, query=query, context=context),
            references=tuple(
                value for n in asked for value in values[n * self.num_values :][: self.num_values]
            ),
            new_tokens=NEW_TOKENS,
            opening=opening.format(kind=kind, query=query),
            depth=round(at[0] / units, 3) if self.needles == 1 else "",
        )

    def _sentences(self, keys: list[str], values: list[str]) -> list[str]:
        return [
            WORDING["needle"].format(kind=self.values, key=key, value=value)
            for key, value in zip(keys, values, strict=True)
        ]


NIAH_TASKS = (
    NeedleTask("niah_single_1", "noise"),
    NeedleTask("niah_single_2", "prose"),
    NeedleTask("niah_single_3", "prose", values="uuids"),
    NeedleTask("niah_multikey_1", "prose", num_keys=4),
    NeedleTask("niah_multikey_2", "needles"),
    NeedleTask("niah_multikey_3", "needles", keys="uuids", values="uuids"),
    NeedleTask("niah_multivalue", "prose", num_values=4),
    NeedleTask("niah_multiquery", "prose", num_keys=4, num_queries=4),
)
