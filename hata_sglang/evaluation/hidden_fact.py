"""Questions about one fact hidden in a long document, asked through a running server.

Dense attention finds such a fact; whether sparse decoding still does is the plainest check of a
selector that a model of any size allows. The answer is a number of five digits, most of which a
sparse step has to read back from the document: the prompt is prefilled densely, which settles the
first token of the reply alone.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hata_sglang.errors import HataError
from hata_sglang.evaluation.haystack import count_tokens, document

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


@dataclass(frozen=True)
class Reply:
    """What a server answered.

    Attributes
    ----------
    text : str
    prompt_tokens, new_tokens : int
        As the server counts them.
    times : tuple of float
        Seconds from the request to each piece of text; the server sends one per token, but holds
        back a token that is not yet a whole character.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    times: tuple[float, ...]

    @property
    def first_token_s(self) -> float:
        """Seconds until the first piece: queueing and prefill."""
        return self.times[0]

    @property
    def gaps_s(self) -> list[float]:
        """Seconds between pieces that follow one another: the latency of a decode step."""
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]

    @property
    def tokens_per_s(self) -> float:
        """Decode speed, prefill excluded."""
        return (self.new_tokens - 1) / (self.times[-1] - self.times[0])


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


def ask(
    base_url: str,
    messages: Sequence[dict[str, str]],
    *,
    max_tokens: int = REPLY_TOKENS,
    ignore_eos: bool = False,
    timeout: float = 1800.0,
) -> Reply:
    """Ask a server through OpenAI's chat API, greedily, and time the reply.

    Parameters
    ----------
    base_url : str
        Root of the server, such as ``http://127.0.0.1:30000``.
    messages : sequence of dict
        In OpenAI's form.
    max_tokens : int, optional
        Default: `REPLY_TOKENS`.
    ignore_eos : bool, default False
        Go on to `max_tokens` (an option of SGLang's): for measuring speed.
    timeout : float, default 1800
        Seconds until the request is given up.

    Returns
    -------
    Reply

    Raises
    ------
    openai.OpenAIError
        If the server refuses, breaks off or does not answer in time.
    HataError
        If the reply is empty.
    """
    from openai import OpenAI

    client = OpenAI(base_url=f"{base_url}/v1", api_key="none", timeout=timeout, max_retries=0)
    start = time.perf_counter()
    stream = client.chat.completions.create(
        model="default",
        messages=list(messages),
        temperature=0,
        max_tokens=max_tokens,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": ignore_eos},
    )
    pieces, times, usage = [], [], None
    for chunk in stream:
        now = time.perf_counter() - start
        usage = chunk.usage or usage
        if chunk.choices and chunk.choices[0].delta.content:
            pieces.append(chunk.choices[0].delta.content)
            times.append(now)
    if usage is None or not times:
        raise HataError(f"{base_url}: expected text and its usage, found {pieces} and {usage}")
    return Reply("".join(pieces), usage.prompt_tokens, usage.completion_tokens, tuple(times))
