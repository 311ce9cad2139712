"""Questions about one fact hidden in a long document.

Dense attention finds such a fact; whether sparse decoding still does is the plainest check of a
selector that a model of any size allows. The answer is a number of five digits, most of which a
sparse step has to read back from the document: the prompt is prefilled densely, which settles the
first token of the reply alone.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Any

from hata_sglang.evaluation.haystack import document, prompt_tokens, words

FACT = "The special magic number of {city} is {number}."
QUESTION = "What is the special magic number of {city}?"
#: New tokens that a reply may have; the model answers in one sentence of 14 or 15.
REPLY_TOKENS = 20


@dataclass(frozen=True)
class HiddenFact:
    """One prompt, and what it should be answered.

    Attributes
    ----------
    prompt : str
        What the user says: a document, a blank line and the question.
    answer : str
        The number to be found, five digits.
    subject : str
        What the number belongs to.
    depth : float
        Share of the document before the fact, 0 to 1.
    tokens : int
        Length of the prompt in the model's chat template, opening of the reply included.
    """

    prompt: str
    answer: str
    subject: str
    depth: float
    tokens: int

    @property
    def messages(self) -> list[dict[str, str]]:
        """The prompt in OpenAI's form."""
        return [{"role": "user", "content": self.prompt}]


def make_prompts(
    tokenizer: Any, n: int = 20, tokens: int = 6000, seed: int = 0, documents: int = 4
) -> list[HiddenFact]:
    """Prompts with one fact each, at depths spread evenly over the document.

    Parameters
    ----------
    tokenizer : transformers tokenizer
        With a chat template.
    n : int, default 20
        Prompts, at most one per city in ``data/haystack.yaml``.
    tokens : int, default 6000
        Length of each prompt in the chat template, at most; it falls short by one sentence.
    seed : int, default 0
    documents : int, default 4
        Different documents. Prompts that share one follow each other at rising depth: the text
        before the earlier fact is then served from the prefix cache, which halves the time.

    Returns
    -------
    list of HiddenFact
        The same for the same arguments and tokenizer.

    Raises
    ------
    ValueError
        If `n` or `documents` is out of range, or `tokens` leaves no room for a document.
    """
    names = words()["cities"]
    if not 1 <= n <= len(names):
        raise ValueError(f"n: expected 1 to {len(names)}, found {n}")
    if not 1 <= documents <= n:
        raise ValueError(f"documents: expected 1 to n = {n}, found {documents}")
    dice = random.Random(f"hidden fact {seed}")
    cities = dice.sample(names, n)
    numbers = dice.sample(range(10_000, 100_000), n)
    prompts = []
    for which in range(documents):
        # Every `documents`-th of the n depths: each document has them from early to late.
        for rank in range(which, n, documents):
            city, number, depth = cities[rank], str(numbers[rank]), (rank + 0.5) / n
            question = f"\n\n{QUESTION.format(city=city)}"
            fact = FACT.format(city=city, number=number)
            room = tokens - prompt_tokens(tokenizer, question)
            prompt = document(tokenizer, room, f"{seed} {which}", fact, depth) + question
            length = prompt_tokens(tokenizer, prompt)
            prompts.append(HiddenFact(prompt, number, city, depth, length))
    return prompts


def found(answer: str, text: str) -> bool:
    """Say whether `text` states the number `answer`, as a whole number of its own.

    Examples
    --------
    >>> found("48213", "It is 48,213."), found("48213", "It is 482130.")
    (True, False)
    """
    joined = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    return re.search(rf"(?<!\d){re.escape(answer)}(?!\d)", joined) is not None
