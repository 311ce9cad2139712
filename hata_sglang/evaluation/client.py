"""Requests to a running server, over the HTTP that its users have, by OpenAI's client."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from httpx import HTTPError
from openai import APIConnectionError, APIStatusError, OpenAI, OpenAIError

from hata_sglang.errors import HataError


class ClientError(HataError):
    """A server cannot be reached, refuses a request, or answers something else."""


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
    def gaps_s(self) -> list[float]:
        """Seconds between pieces that follow one another: the latency of a decode step."""
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]

    @property
    def tokens_per_s(self) -> float:
        """Decode speed, prefill excluded."""
        return (self.new_tokens - 1) / (self.times[-1] - self.times[0])


class Client:
    """A running server.

    Parameters
    ----------
    base_url : str
        Such as ``http://127.0.0.1:30000``.
    timeout : float, default 3600
        Seconds until a request is given up.
    """

    def __init__(self, base_url: str, timeout: float = 3600.0) -> None:
        self.base_url = base_url.rstrip("/")
        # A second try would be counted by the server, too.
        self._openai = OpenAI(
            base_url=f"{self.base_url}/v1", api_key="none", timeout=timeout, max_retries=0
        )

    def request(self, path: str, body: dict[str, Any] | None = None, **options: Any) -> Any:
        """POST `body` as JSON to a path of SGLang's own, or GET without one.

        Parameters
        ----------
        path : str
        body : dict, optional
        **options
            Of the request, such as ``timeout`` in seconds.

        Returns
        -------
        dict or str
            The answer: an object where it is JSON.

        Raises
        ------
        ClientError
            If there is no server, or it refuses.
        """
        url = self.base_url + path
        with _errors(url):
            if body is None:
                return self._openai.get(url, cast_to=object, options=options)
            return self._openai.post(url, cast_to=object, body=body, options=options)

    def ready(self) -> bool:
        """Whether the server takes requests."""
        try:
            self.request("/health", timeout=30)
        except ClientError:  # not listening, or 503
            return False
        return True

    def server_info(self) -> dict[str, Any]:
        """The server's arguments, and under ``internal_states`` its schedulers' state.

        Raises
        ------
        ClientError
            As `request`, or if the server is none of SGLang's.
        """
        info = self.request("/server_info")
        if not isinstance(info, dict) or "internal_states" not in info:
            found = str(info)[:300]
            raise ClientError(f"{self.base_url}/server_info: expected SGLang's, found {found!r}")
        return info

    def state(self) -> dict[str, Any]:
        """Of SGLang's scheduler, hata's counters among it; errors of `server_info`."""
        return self.server_info()["internal_states"][0]

    def counters(self) -> dict[str, Any] | None:
        """Facts and totals of hata (`hata_sglang.metrics.Metrics`), or None without hata."""
        return self.state().get("hata")

    def chat(self, messages: Sequence[dict[str, str]], max_tokens: int, **options: Any) -> Reply:
        """Let the server answer through OpenAI's chat API, greedily, and time the reply.

        Parameters
        ----------
        messages : sequence of dict
            In OpenAI's form.
        max_tokens : int
        **options
            Of SGLang's chat API, such as ``ignore_eos``.

        Raises
        ------
        ClientError
            If the server refuses, breaks off, does not answer in time or does not count tokens.
        """
        url = f"{self.base_url}/v1/chat/completions"
        pieces, times, usage, start = [], [], None, time.perf_counter()
        with _errors(url):
            stream = self._openai.chat.completions.create(
                model="default",
                messages=list(messages),
                temperature=0,
                max_tokens=max_tokens,
                stream=True,
                stream_options={"include_usage": True},
                extra_body=options,
            )
            for chunk in stream:
                now = time.perf_counter() - start
                usage = chunk.usage or usage
                if chunk.choices and chunk.choices[0].delta.content:
                    pieces.append(chunk.choices[0].delta.content)
                    times.append(now)
        if usage is None:
            raise ClientError(f"{url}: expected text and its usage, found {pieces} and no usage")
        return Reply("".join(pieces), usage.prompt_tokens, usage.completion_tokens, tuple(times))


@contextmanager
def _errors(url: str) -> Iterator[None]:
    try:
        yield
    except APIStatusError as error:
        said = error.response.text[:500]
        raise ClientError(
            f"{url}: expected an answer, found HTTP {error.status_code}: {said}"
        ) from None
    except APIConnectionError as error:
        reason = error.__cause__ or error
        raise ClientError(f"{url}: expected a running server, found {reason}") from None
    # HTTPError: a stream that breaks off is not wrapped by OpenAI's client.
    except (OpenAIError, HTTPError, ValueError) as error:
        raise ClientError(f"{url}: expected a whole answer, found {error}") from None
