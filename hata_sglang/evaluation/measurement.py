"""What a server answers to a hidden fact, how fast it decodes, and what a step of it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from hata_sglang.errors import HataError
from hata_sglang.evaluation.client import Client, Reply
from hata_sglang.evaluation.hidden_fact import REPLY_TOKENS, HiddenFact, found
from hata_sglang.evaluation.sparsity import Reading, reading

#: What is asked where the length of the context shall not matter.
SHORT_PROMPT = ({"role": "user", "content": "Tell me a story."},)


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
