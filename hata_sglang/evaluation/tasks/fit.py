"""Filling a prompt up to a length: how much haystack goes in, by the model's own tokenizer."""

from __future__ import annotations

from collections.abc import Callable


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
