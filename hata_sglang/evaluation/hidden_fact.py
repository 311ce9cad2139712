"""Questions about one fact hidden in a long document, asked through a running server.

Dense attention finds such a fact; whether sparse decoding still does is the plainest check of a
selector that a model of any size allows. The answer is a number of five digits, most of which a
sparse step has to read back from the document: the prompt is prefilled densely, which settles the
first token of the reply alone.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from hata_sglang.errors import HataError
from hata_sglang.evaluation.client import Client, Reply
from hata_sglang.evaluation.haystack import count_tokens, document
from hata_sglang.evaluation.sparsity import Reading, reading

CITIES = (
    "Lisbon",
    "Oslo",
    "Cairo",
    "Lima",
    "Tokyo",
    "Paris",
    "Rome",
    "Berlin",
    "Madrid",
    "Vienna",
    "Prague",
    "Dublin",
    "Athens",
    "Boston",
    "Denver",
    "Sydney",
    "Nairobi",
    "Bogota",
    "Havana",
    "Moscow",
    "Zurich",
    "Seoul",
    "Delhi",
    "Chicago",
)
FACT = "The special magic number of {city} is {number}."
QUESTION = "What is the special magic number of {city}?"
#: New tokens that a reply may have; the model answers in one sentence of 14 or 15.
REPLY_TOKENS = 20
#: What is asked where the length of the context shall not matter.
SHORT_PROMPT = ({"role": "user", "content": "Tell me a story."},)


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
        Prompts, at most one per name in `CITIES`.
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
    if not 1 <= n <= len(CITIES):
        raise ValueError(f"n: expected 1 to {len(CITIES)}, found {n}")
    if not 1 <= documents <= n:
        raise ValueError(f"documents: expected 1 to n = {n}, found {documents}")
    dice = random.Random(f"hidden fact {seed}")
    cities = dice.sample(CITIES, n)
    numbers = dice.sample(range(10_000, 100_000), n)
    prompts = []
    for which in range(documents):
        # Every `documents`-th of the n depths: each document has them from early to late.
        for rank in range(which, n, documents):
            city, number = cities[rank], str(numbers[rank])
            question = QUESTION.format(city=city)
            depth = (rank + 0.5) / n
            frame = _chat_tokens(tokenizer, f"\n\n{question}")
            text = document(
                tokenizer,
                tokens - frame,
                f"{seed} {which}",
                [(depth, FACT.format(city=city, number=number))],
            )
            prompt = f"{text}\n\n{question}"
            length = _chat_tokens(tokenizer, prompt)
            prompts.append(HiddenFact(prompt, number, city, depth, length))
    return prompts


def _chat_tokens(tokenizer: Any, content: str) -> int:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    return count_tokens(tokenizer, text)


def found(answer: str, text: str) -> bool:
    """Say whether `text` states the number `answer`, as a whole number of its own.

    Examples
    --------
    >>> found("48213", "It is 48,213."), found("48213", "It is 482130.")
    (True, False)
    """
    joined = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    return re.search(rf"(?<!\d){re.escape(answer)}(?!\d)", joined) is not None


@dataclass(frozen=True)
class Measurement:
    """One prompt on one server: the answer, then decode speed on the same, now cached, prompt.

    Attributes
    ----------
    answer, speed : Reply
        The first reply includes the prefill of the whole prompt.
    short : Reply
        As many steps after a prompt of a few tokens.
    right : bool
        Whether `answer` has the hidden number.
    read : Reading or None
        Over `answer` and `speed`; None on a dense server.
    """

    answer: Reply
    speed: Reply
    short: Reply
    right: bool
    read: Reading | None

    @property
    def step_ms(self) -> float:
        """Median latency of a decode step, in milliseconds."""
        return median(self.speed.gaps_s) * 1e3

    @property
    def short_step_ms(self) -> float:
        """The same after a few tokens: what a step takes that has next to nothing to attend to."""
        return median(self.short.gaps_s) * 1e3

    @property
    def context_share(self) -> float:
        """Share of a step that goes into its context, 0 to 1: what it takes beyond a short one."""
        return max(0.0, 1 - self.short_step_ms / self.step_ms)


def measure(client: Client, fact: HiddenFact, new_tokens: int = 32) -> Measurement:
    """Ask for a hidden fact, then decode `new_tokens` steps after it, and after a short prompt.

    Parameters
    ----------
    client : Client
        Of a server that serves nobody else.
    fact : HiddenFact
    new_tokens : int, default 32
        Decode steps to time.

    Raises
    ------
    HataError
        If a reply is empty, or the server has hata's counters and they say that it did not decode
        sparsely.
    """

    def ask(prompt: Sequence[dict[str, str]], max_tokens: int, **options: Any) -> Reply:
        reply = client.chat(prompt, max_tokens, **options)
        if not reply.times:
            raise HataError(f"{client.base_url}: expected text, found an empty reply")
        return reply

    before = client.counters()
    answer = ask(fact.messages, REPLY_TOKENS)
    speed = ask(fact.messages, new_tokens + 1, ignore_eos=True)
    after = client.counters()
    short = ask(SHORT_PROMPT, new_tokens + 1, ignore_eos=True)
    read = None
    if before is not None and after is not None:
        read = reading(before, after)
    return Measurement(answer, speed, short, found(fact.answer, answer.text), read)
