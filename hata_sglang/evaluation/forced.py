"""Known tokens decoded step by step, with the probability that the model gave each.

``input_token_logprobs`` of SGLang come from the prefill, which attends densely: they say nothing
of a sparse decoder. So the continuation is decoded instead, and each step's token is forced by a
logit processor that runs in the server (``--enable-custom-logit-processor``).

SGLang 0.5.16 to 0.5.23 apply such a processor before anything else, and take the probabilities
that they return from what it leaves (``SGLANG_RETURN_ORIGINAL_LOGPROB``, too). A processor that
puts the forced token above all others would thus hide its probability. This one lets it through:
with l the log-softmax of the step's own logits at the forced token, it leaves

    forced token 0,    carrier l - 1,    every other token -inf

where the carrier is some other token whose log-probability the request asks for
(``token_ids_logprob``). The forced token is always the largest, l being at most 0, so greedy
decoding takes it; and as log-softmax only subtracts a constant,

    l = logprob(carrier) - logprob(forced) + 1.

The processor finds its step by the tokens that the request has decoded, which are up to date only
without overlap scheduling (``--disable-overlap-schedule``).

This module is imported by the server's scheduler process: nothing heavy here.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hata_sglang.errors import HataError

if TYPE_CHECKING:
    from hata_sglang.evaluation.client import Client

#: What a server needs to take the requests of `decode_logprobs`.
SERVER_FLAGS = ("--enable-custom-logit-processor", "--disable-overlap-schedule")
#: Two tokens, as one of them may be forced.
CARRIERS = [0, 1]


class ForceTokens:
    """Logit processor that forces ``custom_params["force"]``, a token a step."""

    def __call__(self, logits: Any, custom_param_list: list[dict[str, Any]] | None) -> Any:
        """Rewrite the logits of each row.

        Parameters
        ----------
        logits : torch.Tensor
            ``[rows, vocabulary]`` float32; changed in place.
        custom_param_list : list of dict
            Of each row: ``force`` (token ids), ``carriers`` (two token ids) and ``__req__``,
            SGLang's request.

        Returns
        -------
        torch.Tensor
            `logits`.
        """
        for row, params in zip(logits, custom_param_list or (), strict=True):
            step = len(params["__req__"].output_ids)
            if step >= len(params["force"]):  # a step that overshoots the end is thrown away
                continue
            token = params["force"][step]
            carrier = next(each for each in params["carriers"] if each != token)
            own = row[token] - row.logsumexp(-1)
            row.fill_(-float("inf"))
            row[token] = 0.0
            row[carrier] = own - 1.0
        return logits


def decode_logprobs(client: Client, prompt: Sequence[int], force: Sequence[int]) -> list[float]:
    """Log-probabilities of known tokens, each but the first from a decode step.

    Parameters
    ----------
    client : Client
        Of a server with `SERVER_FLAGS`.
    prompt, force : sequence of int
        Token ids: prefilled, and decoded after it.

    Returns
    -------
    list of float
        Natural logarithms, one per token of `force`; the first is the prefill's.

    Raises
    ------
    HataError
        If the server does not decode these tokens.
    """
    body = {
        "input_ids": list(prompt),
        "sampling_params": {
            "temperature": 0,
            "max_new_tokens": len(force),
            "ignore_eos": True,
            "custom_params": {"force": list(force), "carriers": CARRIERS},
        },
        # By reference, as SGLang's own classes are sent: the server imports this module.
        "custom_logit_processor": json.dumps({"callable": pickle.dumps(ForceTokens).hex()}),
        "return_logprob": True,
        "token_ids_logprob": CARRIERS,
    }
    try:
        meta = client.request("/generate", body)["meta_info"]
        tokens, carried = meta["output_token_logprobs"], meta["output_token_ids_logprobs"]
        decoded = [token for _, token, *_ in tokens]
        if decoded != list(force):
            pairs = enumerate(zip(decoded, force, strict=False))
            wrong = next((n for n, (a, b) in pairs if a != b), min(len(decoded), len(force)))
            raise ValueError(
                f"expected the {len(force)} forced tokens, found {len(decoded)} of which number "
                f"{wrong} is another; the server needs {' '.join(SERVER_FLAGS)}"
            )
        result = []
        for (value, token, *_), others in zip(tokens, carried, strict=True):
            carrier = next(other for other, each, *_ in others if each != token)
            result.append(carrier - value + 1.0)
        return result
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        raise HataError(f"{client.base_url}/generate: {error}") from None
