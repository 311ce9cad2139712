"""Requests to a server that is being graded, over the HTTP that its users have."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hata_sglang.errors import HataError
from hata_sglang.evaluation.forced import forced_logprobs, forced_request
from hata_sglang.evaluation.tasks.base import Sample


class ClientError(HataError):
    """A server cannot be reached, refuses a request, or answers something else."""


@dataclass(frozen=True)
class Answer:
    """What a server answered to a sample.

    Attributes
    ----------
    text : str
        Without the sample's opening.
    prompt_tokens, new_tokens : int
        As the server counts them.
    """

    text: str
    prompt_tokens: int
    new_tokens: int


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
        self.timeout = timeout

    def request(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """POST `body` as JSON, or GET without one; returns the answer's JSON.

        Raises
        ------
        ClientError
            If there is no server, it refuses, or the answer is no JSON.
        """
        url = self.base_url + path
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:500]
            raise ClientError(
                f"{url}: expected an answer, found HTTP {error.code}: {said}"
            ) from None
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            reason = getattr(error, "reason", error)
            raise ClientError(f"{url}: expected a running server, found {reason}") from None
        except json.JSONDecodeError as error:
            raise ClientError(f"{url}: expected JSON, found {error.msg}") from None

    def server_info(self) -> dict[str, Any]:
        """SGLang's own settings and state."""
        return self.request("/server_info")

    def counters(self) -> dict[str, Any] | None:
        """Facts and totals of hata (`hata_sglang.metrics.Metrics`), or None without hata."""
        (state, *_) = self.server_info()["internal_states"]
        return state.get("hata")

    def ask(self, sample: Sample) -> Answer:
        """Let the server answer a sample, greedily, through OpenAI's API.

        With ``info["chat"]`` 0 the prompt goes to ``/v1/completions``, bare; else to
        ``/v1/chat/completions``, where the server puts it into the chat template. An opening is
        sent as the start of the assistant's message, which SGLang goes on from
        (``continue_final_message``).

        Raises
        ------
        ClientError
            As `request`; also if the answer is not of OpenAI's form.
        """
        body: dict[str, Any] = {
            "model": "default",
            "temperature": 0,
            "max_tokens": sample.new_tokens,
        }
        chat = bool(sample.info.get("chat", 1))
        if chat:
            body["messages"] = [{"role": "user", "content": sample.prompt}]
            if sample.opening:
                body["messages"].append({"role": "assistant", "content": sample.opening})
                body["continue_final_message"] = True
        else:
            body["prompt"] = sample.prompt + sample.opening
        path = "/v1/chat/completions" if chat else "/v1/completions"
        reply = self.request(path, body)
        try:
            (choice,) = reply["choices"]
            text = choice["message"]["content"] if chat else choice["text"]
            usage = reply["usage"]
            # SGLang says null for an answer that ended before its first token.
            return Answer(text or "", usage["prompt_tokens"], usage["completion_tokens"])
        except (KeyError, TypeError, ValueError):
            found = json.dumps(reply)[:300]
            raise ClientError(
                f"{self.base_url}{path}: expected one choice and its usage, found {found}"
            ) from None

    def decode_logprobs(self, prompt: Sequence[int], force: Sequence[int]) -> list[float]:
        """Log-probabilities of known tokens, each but the first from a decode step.

        See `hata_sglang.evaluation.forced`.

        Parameters
        ----------
        prompt, force : sequence of int
            Token ids: prefilled, and decoded after it.

        Returns
        -------
        list of float
            One per token of `force`; the first is the prefill's.

        Raises
        ------
        ClientError
            If the server does not decode these tokens.
        """
        reply = self.request("/generate", forced_request(prompt, force))
        try:
            return forced_logprobs(reply["meta_info"], force)
        except (KeyError, TypeError, ValueError, StopIteration) as error:
            raise ClientError(f"{self.base_url}/generate: {error}") from None
