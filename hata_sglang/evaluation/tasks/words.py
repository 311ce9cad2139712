"""RULER's wording, and keys and values: the same seed gives the same, as all is in ``data/``."""

from __future__ import annotations

import random
import uuid
from importlib.resources import files

import yaml

_DATA = files("hata_sglang.evaluation") / "tasks" / "data"
#: RULER's instructions, questions and openings of the answer.
WORDING = yaml.safe_load(_DATA.joinpath("ruler.yaml").read_text("utf-8"))
_KEYS = yaml.safe_load(_DATA.joinpath("keys.yaml").read_text("utf-8"))
ADJECTIVES, NOUNS = (tuple(_KEYS[kind].split()) for kind in ("adjectives", "nouns"))
#: Different keys there are.
MOST_KEYS = len(ADJECTIVES) * len(NOUNS)


def word_keys(dice: random.Random, count: int) -> list[str]:
    """Different keys such as ``quiet-harbor``.

    Raises
    ------
    ValueError
        If `count` is above `MOST_KEYS`.
    """
    if count > MOST_KEYS:
        raise ValueError(f"count: expected at most {MOST_KEYS} different keys, found {count}")
    return [
        f"{ADJECTIVES[n // len(NOUNS)]}-{NOUNS[n % len(NOUNS)]}"
        for n in dice.sample(range(MOST_KEYS), count)
    ]


def numbers(dice: random.Random, count: int, digits: int = 7) -> list[str]:
    """Different numbers of as many digits."""
    return [str(n) for n in dice.sample(range(10 ** (digits - 1), 10**digits), count)]


def uuids(dice: random.Random, count: int) -> list[str]:
    """Random UUIDs of version 4; 122 random bits, so that two are never the same."""
    return [str(uuid.UUID(int=dice.getrandbits(128), version=4)) for _ in range(count)]
