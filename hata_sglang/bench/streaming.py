"""Times of streamed answers, and what they say: first token, gaps between tokens, throughput."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np


@dataclass(frozen=True)
class Stream:
    """One request's chunks.

    Attributes
    ----------
    sent : float
        Seconds, of any clock.
    times : tuple of float
        When each chunk came, on the same clock.
    tokens : tuple of int
        Tokens generated until then, the chunk's own included. A chunk has more than one token
        where the receiver, or SGLang's detokenizer, fell behind.
    cached : int
        Tokens of the prompt that SGLang found in its radix cache.
    """

    sent: float
    times: tuple[float, ...]
    tokens: tuple[int, ...]
    cached: int = 0

    def gaps_ms(self, since: float, until: float) -> list[float]:
        """Milliseconds per token of the chunks, but the first, between two times."""
        gaps = []
        for i in range(1, len(self.times)):
            new = self.tokens[i] - self.tokens[i - 1]
            if since <= self.times[i - 1] and self.times[i] <= until and new > 0:
                gaps += [1e3 * (self.times[i] - self.times[i - 1]) / new] * new
        return gaps

    def tokens_at(self, time: float) -> int:
        """Tokens that had come at `time`."""
        return max(
            (n for at, n in zip(self.times, self.tokens, strict=True) if at <= time), default=0
        )


async def record(
    chunks: AsyncIterator[dict], clock: Callable[[], float], sent: float | None = None
) -> Stream:
    """Read a request's chunks until the end.

    Parameters
    ----------
    chunks : async iterator of dict
        SGLang's, with ``meta_info.completion_tokens``.
    clock : callable
        Returns seconds.
    sent : float, optional
        When the request was made. Default: now.
    """
    sent = clock() if sent is None else sent
    times, tokens, cached = [], [], 0
    async for chunk in chunks:
        count = chunk["meta_info"]["completion_tokens"]
        cached = chunk["meta_info"].get("cached_tokens", cached)
        if count > (tokens[-1] if tokens else 0):  # the last one may only say why it ended
            times.append(clock())
            tokens.append(count)
    return Stream(sent, tuple(times), tuple(tokens), cached)


@dataclass(frozen=True)
class Speed:
    """What users see of requests that were sent together; None where nothing was measured.

    Attributes
    ----------
    ttft_p50_s, ttft_max_s : float
        Seconds from sending to the first token: of the median user, and of the last.
    itl_p50_ms, itl_p99_ms : float or None
        Milliseconds between tokens in the steady state.
    decode_tokens_per_s : float or None
        Of all users together, in the steady state.
    steady_s : float
        Length of the steady state: from when every user has a token until the first has all.
    output_tokens, cached_tokens : int
        Of all users: generated, and of the prompts found in the radix cache.
    """

    ttft_p50_s: float
    ttft_max_s: float
    itl_p50_ms: float | None
    itl_p99_ms: float | None
    decode_tokens_per_s: float | None
    steady_s: float
    output_tokens: int
    cached_tokens: int

    @classmethod
    def of(cls, streams: Sequence[Stream]) -> Speed:
        """Of requests that were sent together, each with a token at least."""
        first = [stream.times[0] - stream.sent for stream in streams]
        begin = max(stream.times[0] for stream in streams)
        end = min(stream.times[-1] for stream in streams)
        gaps = [gap for stream in streams for gap in stream.gaps_ms(begin, end)]
        steady = max(end - begin, 0.0)
        made = sum(stream.tokens_at(end) - stream.tokens_at(begin) for stream in streams)
        low, high = np.percentile(gaps, (50, 99)) if gaps else (None, None)
        return cls(
            ttft_p50_s=median(first),
            ttft_max_s=max(first),
            itl_p50_ms=None if low is None else float(low),
            itl_p99_ms=None if high is None else float(high),
            decode_tokens_per_s=made / steady if steady > 0 else None,
            steady_s=steady,
            output_tokens=sum(stream.tokens[-1] for stream in streams),
            cached_tokens=sum(stream.cached for stream in streams),
        )
