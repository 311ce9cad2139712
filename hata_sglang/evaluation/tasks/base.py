"""What a task is: a maker of samples that fill a length, the same ones for every arm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from hata_sglang.errors import HataError

if TYPE_CHECKING:
    from hata_sglang.evaluation.client import Client, Reply


def prompt_tokens(tokenizer: Any, prompt: str, opening: str = "") -> int:
    """Length of what a server prefills: `prompt` in the chat template, then `opening`."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    return len(tokenizer(text + opening, add_special_tokens=False)["input_ids"])


@dataclass(frozen=True)
class Sample:
    """One prompt, and how its answer is scored.

    Attributes
    ----------
    task : str
        Name in `hata_sglang.evaluation.tasks.TASKS`.
    prompt : str
        What the user says. The server puts it into the model's chat template.
    references : tuple of str
        What the answer is compared with.
    new_tokens : int
        Tokens that the answer may have.
    opening : str
        Start of the assistant's answer, which the model goes on from. Default: none.
    depth : float or str
        Share of the text before the needle, 0 to 1; empty where there is no single one.
    index : int
        Place among the samples of one call, from 0.
    tokens : int
        Length of the prompt in the chat template, `opening` included.
    """

    task: str
    prompt: str
    references: tuple[str, ...]
    new_tokens: int
    opening: str = ""
    depth: float | str = ""
    index: int = 0
    tokens: int = 0

    def ask(self, client: Client, new_tokens: int | None = None, **options: Any) -> Reply:
        """Let a server answer.

        Parameters
        ----------
        client : Client
        new_tokens : int, optional
            Tokens that the answer may have. Default: those of the sample.
        **options
            As in `Client.chat`, whose errors are raised.
        """
        messages = [{"role": "user", "content": self.prompt}]
        if self.opening:
            # SGLang goes on from an assistant's message that is begun.
            messages.append({"role": "assistant", "content": self.opening})
            options["continue_final_message"] = True
        return client.chat(messages, new_tokens or self.new_tokens, **options)

    def score(self, answer: str) -> float:
        """Share of the references that stand in an answer, whatever the case, as in RULER."""
        text = answer.lower()
        return sum(each.lower() in text for each in self.references) / len(self.references)


def largest(
    measure: Callable[[int], int], limit: int, *, least: int, most: int | None, start: int
) -> int:
    """Give the largest amount whose size is within a limit, by few measurements.

    Sizes grow nearly evenly with the amount, so most steps interpolate; every third halves the
    bracket, which bounds their number whatever the sizes do.

    Parameters
    ----------
    measure : callable
        Amount -> size; grows with the amount, up to noise of a few tokens.
    limit : int
        Of the size.
    least, most : int
        Amounts allowed; `most` may be None for any.
    start : int
        Amount to try first.

    Returns
    -------
    int
        Its size is within the limit for certain. -1 if that of `least` is not.
    """
    low, size_low = least, measure(least)
    if size_low > limit:
        return -1
    high, size_high, steps, guess = None, 0, 0, start
    while (high is None and low != most) or (high is not None and high - low > 1):
        top = most if high is None else high - 1
        guess = max(guess, low + 1) if top is None else min(max(guess, low + 1), top)
        size = measure(guess)
        if size <= limit:
            rate = max((size - size_low) / (guess - low), 0.01)
            low, size_low = guess, size
        else:
            high, size_high = guess, size
        steps += 1
        if high is None:
            guess = low + max(1, int((limit - size_low) / rate))
        elif steps % 3 == 0:
            guess = (low + high) // 2
        else:
            guess = low + int((limit - size_low) * (high - low) / max(size_high - size_low, 1))
    return low


class Task(ABC):
    """A maker of samples.

    Attributes
    ----------
    name : str
    least : int
        Units of haystack of the shortest prompt.
    most : int or None
        Units of haystack there are; None: any number.
    """

    name: str
    least: ClassVar[int] = 1
    most: ClassVar[int | None] = None

    @abstractmethod
    def build(self, key: str, units: int, length: int) -> Sample:
        """Make one sample, but for its index and tokens.

        Parameters
        ----------
        key : str
            Seeds every choice: what is hidden depends on nothing else, not on `units`.
        units : int
            Of haystack: lines, sentences or words.
        length : int
            Tokens that the sample is to fill.
        """

    def samples(self, count: int, length: int, tokenizer: Any, seed: int) -> list[Sample]:
        """Make samples that fill a length as far as whole units of haystack allow.

        Parameters
        ----------
        count : int
        length : int
            Tokens at most of a prompt in the chat template and its answer together.
        tokenizer : transformers tokenizer
            With a chat template.
        seed : int
            The same arguments give the same samples.

        Raises
        ------
        HataError
            If `length` has no room for the least haystack, or all the haystack there is does not
            fill it.
        """
        samples, units = [], 16
        for index in range(count):
            key = f"{self.name} {seed} {index}"

            @cache
            def measure(units: int, key: str = key) -> int:
                sample = self.build(key, units, length)
                return prompt_tokens(tokenizer, sample.prompt, sample.opening) + sample.new_tokens

            units = largest(measure, length, least=self.least, most=self.most, start=units)
            size = measure(max(units, self.least))
            setting = f"length of task {self.name}"
            if units < 0:
                raise HataError(f"{setting}: expected at least {size} tokens, found {length}")
            if units == self.most:
                raise HataError(
                    f"{setting}: expected fewer than {size} tokens, which take all the haystack "
                    f"there is, found {length}"
                )
            sample = self.build(key, units, length)
            samples.append(replace(sample, index=index, tokens=size - sample.new_tokens))
        return samples
