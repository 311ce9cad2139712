"""Long documents to hide a fact in: plain prose, the same for the same seed.

The prose is generated from sentence patterns of its own (the training texts of the shipped hash
weights use others), has no digits, and rarely says the same thing twice. So nothing in a document
but the hidden fact looks like an answer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

PEOPLE = (
    "Anna",
    "the miller",
    "Old Tom",
    "the baker",
    "Sara",
    "the teacher",
    "a young sailor",
    "the postman",
    "Peter",
    "my aunt",
    "the gardener",
    "Clara",
    "the ferryman",
    "the doctor",
    "the carpenter",
    "Ida",
    "the shepherd",
    "our neighbour",
    "Henrik",
    "the innkeeper",
)
PLACES = (
    "the harbour",
    "the mill",
    "the market square",
    "the old bridge",
    "the orchard",
    "the church",
    "the river bank",
    "the school",
    "the forest road",
    "the bakery",
    "the hill above the village",
    "the lighthouse",
    "the garden",
    "the station",
    "the meadow",
    "the boat house",
)
TIMES = (
    "In the morning",
    "After lunch",
    "Before the bells rang",
    "On a windy day",
    "Late in the evening",
    "When the fog lifted",
    "That same week",
    "During the long summer",
    "Once the snow had melted",
    "As soon as the boats came in",
    "A little later",
    "On Sunday",
    "Toward the end of the month",
    "While the others slept",
)
ACTS = (
    "walked slowly to {place}",
    "mended a broken fence near {place}",
    "carried a basket of apples from {place}",
    "waited for the rain to stop at {place}",
    "told a long story about {place}",
    "found a lost glove beside {place}",
    "painted a small picture of {place}",
    "sat down to rest by {place}",
    "looked for the grey cat around {place}",
    "met an old friend in front of {place}",
    "swept the leaves away from {place}",
    "heard music coming from {place}",
    "planted roses along the wall of {place}",
    "shared a loaf of bread with strangers at {place}",
)
ENDINGS = (
    "and nobody was in a hurry.",
    "while the clouds moved over the hills.",
    "because there was still bread to deliver.",
    "and the dog followed at a distance.",
    "although the path was muddy.",
    "so the others began without waiting.",
    "and then went home for supper.",
    "while a kettle sang in the kitchen.",
    "and thought about the winter.",
    "because the days were growing short.",
    "and the smell of smoke hung in the air.",
    "which made everyone laugh.",
    "though it took longer than expected.",
    "and the gulls circled above the roofs.",
)


def sentences(seed: int | str) -> Iterator[str]:
    """Endless plain sentences, each ending in a full stop, without digits.

    Parameters
    ----------
    seed : int or str
        The same seed gives the same sentences, with any Python and on any machine.
    """
    dice = random.Random(seed)
    while True:
        act = dice.choice(ACTS).format(place=dice.choice(PLACES))
        yield f"{dice.choice(TIMES)}, {dice.choice(PEOPLE)} {act} {dice.choice(ENDINGS)}"


def count_tokens(tokenizer: Any, text: str) -> int:
    """Tokens of `text` alone, without the special ones that some tokenizers add."""
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def document(
    tokenizer: Any, tokens: int, seed: int | str, facts: Sequence[tuple[float, str]] = ()
) -> str:
    """Prose of a given length with sentences hidden in it.

    Documents of one seed and length share every sentence before their first hidden one, so that a
    server's prefix cache can serve that part of the later ones.

    Parameters
    ----------
    tokenizer : transformers tokenizer
        What `tokens` counts in.
    tokens : int
        Length of the result at most; it falls short by less than one sentence (about 30 tokens).
    seed : int or str
    facts : sequence of (depth, sentence), optional
        Depth is the share of the prose that stands before the sentence, from 0 (first) to 1
        (last). Default: none.

    Returns
    -------
    str
        Sentences separated by one space.

    Raises
    ------
    ValueError
        If a depth is outside 0 to 1, or the hidden sentences alone are longer than `tokens`.
    """
    for depth, sentence in facts:
        if not 0 <= depth <= 1:
            raise ValueError(f"depth of {sentence!r}: expected 0 to 1, found {depth}")
    hidden = " ".join(sentence for _, sentence in facts)
    room = tokens - (count_tokens(tokenizer, hidden) if hidden else 0)
    if room < 0:
        raise ValueError(
            f"tokens: expected at least {tokens - room} for the hidden sentences, found {tokens}"
        )
    prose: list[str] = []
    for sentence in sentences(seed):
        # Sentences meet at spaces, where tokens of the usual vocabularies begin: lengths add up.
        room -= count_tokens(tokenizer, f" {sentence}")
        if room < 0:
            break
        prose.append(sentence)

    def assemble() -> str:
        parts = list(prose)
        for depth, sentence in sorted(facts, reverse=True):
            parts.insert(round(depth * len(prose)), sentence)
        return " ".join(parts)

    text = assemble()
    while prose and count_tokens(tokenizer, text) > tokens:
        prose.pop()
        text = assemble()
    return text
