"""Words to build keys and lists of: part of the package, so that the same seed gives the same ones.

RULER takes its words from the Python package wonderwords; these lists stand in for it.
"""

from __future__ import annotations

import gzip
import random
import uuid
from functools import lru_cache
from importlib.resources import files

_ADJECTIVES = """
able amber ancient angular autumn bashful bitter blue bold brave brief bright brisk broad bronze
calm careful cheap cheerful chilly civil clean clever cloudy coarse cold common copper cosy
crimson crisp curious curly daily damp daring dark deep dense distant double dry dusty eager
early eastern easy elegant empty equal exact faint fair faithful famous fancy fast feeble fierce
final fine firm flat fluffy foggy formal frank free fresh frosty full gentle giant glad glossy
golden good grand grateful grave green grey happy hard hasty heavy hidden high hollow honest
huge humble hungry icy idle inner ivory jolly joyful keen kind large late lazy lean level light
little lively local lofty lone long loose loud loyal lucky mellow merry mighty mild misty modern
modest muddy narrow neat noble noisy northern odd old open orange outer pale patient plain
polite prompt proud pure purple quaint quick quiet rapid rare ready red regal rich ripe rough
round royal rusty
"""
_NOUNS = """
acorn anchor apple arrow badge bakery balloon barrel basket bead beach bell bench berry blanket
board boat bottle bowl branch brick bridge broom brush bucket bus button cabin cable cactus
candle canoe canyon card carpet carrot castle cave chain chair chalk cherry chimney circle cliff
clock cloud coat coin comet compass cotton crown cup curtain daisy desert desk diamond door dove
dragon drum eagle engine falcon feather fence fern field flag flame flute forest fork fountain
fox garden gate glove goose grape guitar hammer harbor hat hawk helmet hill honey horn horse
island jacket jar jewel kettle key kite ladder lake lamp lantern leaf lemon letter lion lizard
map maple marble market meadow melon mirror mitten moon moth mountain needle nest notebook oak
ocean olive onion orchard owl paddle palace panda paper parrot peach pebble pencil pepper piano
pillow pine planet plum pocket pond poppy potato puzzle quilt rabbit radio rain raven ribbon
ring river robin rocket rope rose saddle sail salmon scarf school shell
"""
ADJECTIVES, NOUNS = tuple(_ADJECTIVES.split()), tuple(_NOUNS.split())
#: Different keys there are.
MOST_KEYS = len(ADJECTIVES) * len(NOUNS)


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """Every word of ``data/words.txt.gz``, sorted: 4 to 12 lower-case letters each."""
    packed = files("hata_sglang.evaluation.tasks").joinpath("data/words.txt.gz").read_bytes()
    return tuple(gzip.decompress(packed).decode("utf-8").split())


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
