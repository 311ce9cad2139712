"""Words to build keys and lists of: part of the package, so that the same seed gives the same."""

from __future__ import annotations

import random
import uuid
from functools import lru_cache

from hata_sglang.evaluation.tasks.stored import read_yaml, unpack

_KEYS = read_yaml("keys.yaml")
ADJECTIVES, NOUNS = (tuple(_KEYS[kind].split()) for kind in ("adjectives", "nouns"))
#: Different keys there are.
MOST_KEYS = len(ADJECTIVES) * len(NOUNS)


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """Every word of ``data/words.txt.gz``, sorted: 4 to 12 lower-case letters each."""
    return tuple(unpack("words.txt.gz").split())


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


def letters(dice: random.Random, count: int, length: int, alphabet: str) -> list[str]:
    """Different strings of random letters, in the order drawn.

    Raises
    ------
    ValueError
        If the alphabet has fewer such strings than half of `count` asks for.
    """
    if 2 * count > len(alphabet) ** length:
        raise ValueError(
            f"count: expected at most {len(alphabet) ** length // 2} strings of {length} letters, "
            f"found {count}"
        )
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        drawn["".join(dice.choices(alphabet, k=length))] = None
    return list(drawn)
