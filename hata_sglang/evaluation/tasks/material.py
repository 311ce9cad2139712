"""What tasks are made of: RULER's wording, a haystack of noise or prose, and words.

All of it is part of the package, so that the same seed gives the same.
"""

from __future__ import annotations

import gzip
import random
import re
import uuid
from functools import cache
from importlib.resources import files
from itertools import cycle, islice

import yaml

_DATA = files("hata_sglang.evaluation") / "tasks" / "data"


def read_yaml(name: str) -> dict[str, str]:
    """Texts by name, of a YAML file."""
    return yaml.safe_load(_DATA.joinpath(name).read_text("utf-8"))


@cache
def unpack(name: str) -> str:
    """A text that is kept compressed, such as ``words.txt.gz``."""
    return gzip.decompress(_DATA.joinpath(name).read_bytes()).decode("utf-8")


#: RULER's instructions, questions and openings of the answer.
WORDING = read_yaml("ruler.yaml")
#: RULER's noise, repeated to any length (first used by passkey retrieval, arXiv 2305.16300).
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NOVEL = "pride-and-prejudice"
_KEYS = read_yaml("keys.yaml")
ADJECTIVES, NOUNS = (tuple(_KEYS[kind].split()) for kind in ("adjectives", "nouns"))
#: Different keys there are.
MOST_KEYS = len(ADJECTIVES) * len(NOUNS)

_END = re.compile(r"[.!?][\"'”’)]*\s+(?=[\"'“‘(]?[A-Z0-9])")
_TITLES = frozenset(("Mr.", "Mrs.", "Ms.", "Dr.", "St.", "Messrs.", "Esq.", "Col.", "Capt."))


def split_sentences(text: str) -> tuple[str, ...]:
    """Split prose after full stops, question and exclamation marks; white space becomes one blank.

    Examples
    --------
    >>> split_sentences("Mr. Hill came.  He asked, 'Why?' Nobody knew.")
    ('Mr. Hill came.', "He asked, 'Why?'", 'Nobody knew.')
    """
    text = " ".join(text.split())
    found, begin = [], 0
    for end in _END.finditer(text):
        last_word = text[max(begin, end.start() - 8) : end.start() + 1].rsplit(" ", 1)[-1]
        if last_word.lstrip("\"'“‘(") in _TITLES:
            continue
        found.append(text[begin : end.end()].rstrip())
        begin = end.end()
    if begin < len(text):
        found.append(text[begin:])
    return tuple(found)


@cache
def _sentences() -> tuple[str, ...]:
    return split_sentences(unpack(f"{NOVEL}.txt.gz"))


def prose(count: int) -> list[str]:
    """The first sentences of the novel in this package; after its last one it starts again."""
    return list(islice(cycle(_sentences()), count))


@cache
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
