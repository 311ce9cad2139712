"""Plain prose for prompts, the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import yaml

WORDS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))


def sentences(seed: int) -> Iterator[str]:
    """Endless plain sentences, of eight tokens and more."""
    dice = random.Random(seed)
    while True:
        act = dice.choice(WORDS["acts"]).format(place=dice.choice(WORDS["places"]))
        front = f"{dice.choice(WORDS['times'])}, {dice.choice(WORDS['people'])}"
        yield f"{front} {act} {dice.choice(WORDS['endings'])}"
