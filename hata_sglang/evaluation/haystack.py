"""Long documents to hide a fact in: plain prose, the same for the same seed.

The prose is generated from sentence patterns of its own (the training texts of the shipped hash
weights use others), has no digits, and rarely says the same thing twice. So nothing in a document
but the hidden fact looks like an answer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import lru_cache
from importlib.resources import files
from typing import Any

import yaml


@lru_cache(maxsize=1)
def words() -> dict[str, list[str]]:
    """Words and sentence patterns: ``data/haystack.yaml``."""
    text = files("hata_sglang.evaluation").joinpath("data/haystack.yaml").read_text("utf-8")
    return yaml.safe_load(text)


def sentences(seed: int | str) -> Iterator[str]:
    """Endless plain sentences, each ending in a full stop, without digits.

    Parameters
    ----------
    seed : int or str
        The same seed gives the same sentences, with any Python and on any machine.
    """
    dice, own = random.Random(seed), words()
    while True:
        act = dice.choice(own["acts"]).format(place=dice.choice(own["places"]))
        front = f"{dice.choice(own['times'])}, {dice.choice(own['people'])}"
        yield f"{front} {act} {dice.choice(own['endings'])}"


def count_tokens(tokenizer: Any, text: str) -> int:
    """Tokens of `text` alone, without the special ones that some tokenizers add."""
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def prompt_tokens(tokenizer: Any, prompt: str, opening: str = "") -> int:
    """Length of what a server prefills: `prompt` in the chat template, then `opening`."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    return count_tokens(tokenizer, text + opening)


def document(
    tokenizer: Any, tokens: int, seed: int | str, fact: str = "", depth: float = 0.5
) -> str:
    """Prose of a given length with a sentence hidden in it.

    Documents of one seed and length share every sentence before their hidden one, so that a
    server's prefix cache can serve that part of the later ones.

    Parameters
    ----------
    tokenizer : transformers tokenizer
        What `tokens` counts in.
    tokens : int
        Length of the result at most; it falls short by less than one sentence (about 30 tokens).
    seed : int or str
    fact : str, default ""
        The hidden sentence; empty: none.
    depth : float, default 0.5
        Share of the prose that stands before it, 0 to 1.

    Returns
    -------
    str
        Sentences separated by one space.

    Raises
    ------
    ValueError
        If the hidden sentence alone is longer than `tokens`.
    """
    least = count_tokens(tokenizer, fact)
    if least > tokens:
        raise ValueError(f"tokens: expected at least {least} for the fact, found {tokens}")
    prose, used = [], least
    for sentence in sentences(seed):
        # Sentences meet at spaces, where tokens of the usual vocabularies begin: lengths add up.
        used += count_tokens(tokenizer, f" {sentence}")
        if used > tokens:
            break
        prose.append(sentence)

    def assemble() -> str:
        place = round(depth * len(prose))
        return " ".join(prose[:place] + [fact] * bool(fact) + prose[place:])

    while prose and count_tokens(tokenizer, assemble()) > tokens:
        prose.pop()
    return assemble()
