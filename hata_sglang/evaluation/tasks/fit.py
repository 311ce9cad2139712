"""Filling a prompt up to a length: how much haystack goes in, by the model's own tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hata_sglang.errors import HataError
from hata_sglang.evaluation.haystack import prompt_tokens
from hata_sglang.evaluation.tasks.base import Sample


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


def fitted(
    build: Callable[[int, int], Sample],
    *,
    count: int,
    length: int,
    tokenizer: Any,
    least: int,
    most: int | None = None,
    start: int = 16,
) -> list[Sample]:
    """Make samples that fill `length` as far as whole units of haystack allow.

    Parameters
    ----------
    build : callable
        (index of the sample, units of haystack) -> Sample, but for its length. The same arguments
        give the same, so that it depends on nothing but its index and the seed in `build`.
    count, length, tokenizer
        As in `Task.samples`.
    least, most : int
        Units of haystack allowed; `most` None: any number.
    start : int, default 16
        Units to try first.

    Raises
    ------
    HataError
        If `count` is below 1, `length` has no room for the least haystack, or all the haystack
        there is does not fill it.
    """
    if count < 1:
        raise HataError(f"count: expected at least 1, found {count}")
    samples = []
    for index in range(count):

        def measure(units: int, index: int = index) -> int:
            sample = build(index, units)
            return prompt_tokens(tokenizer, sample.prompt, sample.opening) + sample.new_tokens

        units = largest(measure, length, least=least, most=most, start=start)
        sample = build(index, max(units, least))
        size = measure(max(units, least))
        setting = f"length of task {sample.task}"
        if units < 0:
            raise HataError(f"{setting}: expected at least {size} tokens, found {length}")
        if units == most:
            raise HataError(
                f"{setting}: expected fewer than {size} tokens, which take all the haystack there "
                f"is, found {length}"
            )
        info = {"length": length, **sample.info}
        samples.append(replace(sample, tokens=size - sample.new_tokens, info=info))
        start = units
    return samples
