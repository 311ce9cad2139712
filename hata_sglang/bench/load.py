"""The load of ``hata-sglang bench serve``: SGLang's own benchmark client, and what users saw."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from hata_sglang.errors import HataError

if TYPE_CHECKING:
    from sglang.benchmark.serving import RequestFuncOutput

#: Settings of `sglang.benchmark.serving` that its client reads.
SETTINGS = {
    "temperature": 0.0,
    "top_p": 1.0,
    "disable_ignore_eos": False,
    "disable_stream": False,
    "cache_report": True,
    "return_logprob": False,
    "return_routed_experts": False,
    "logprob_start_len": -1,
    "top_logprobs_num": 0,
    "token_ids_logprob": None,
}


def send(base_url: str, prompts: Sequence[list[int]], output: int) -> list[RequestFuncOutput]:
    """Send prompts together with the client of ``sglang.benchmark.serving``; wait for all.

    Parameters
    ----------
    base_url : str
        Of a server with a tokenizer: the client counts tokens by their text.
    prompts : sequence of list of int
        Token ids.
    output : int
        Tokens that each is answered with.

    Returns
    -------
    list of RequestFuncOutput
        ``start_time``, ``ttft`` and every ``itl`` in seconds, of one clock.

    Raises
    ------
    HataError
        If an answer is missing or short.
    """
    from sglang.benchmark import serving

    serving.set_global_args(Namespace(**SETTINGS))
    # The client's own, and every token as text: it takes one without for none.
    sampling = {"temperature": 0, "max_new_tokens": output, "ignore_eos": True}
    body = {"sampling_params": {**sampling, "skip_special_tokens": False}}

    async def together() -> list[RequestFuncOutput]:
        asked = (
            serving.RequestFuncInput(
                prompt=prompt,
                api_url=base_url + "/generate",
                prompt_len=len(prompt),
                output_len=output,
                model="default",
                lora_name=None,
                image_data=None,
                extra_request_body=body,
            )
            for prompt in prompts
        )
        return await asyncio.gather(*map(serving.async_request_sglang_generate, asked))

    answers = asyncio.run(together())
    for answer in answers:
        if not (answer.success and answer.ttft and answer.output_len == output):
            found = answer.error[-2000:] or f"{answer.output_len}, {answer.generated_text[:80]!r}"
            raise HataError(f"{base_url}/generate: expected {output} tokens, found {found}")
    return answers


def speed(answers: Sequence[RequestFuncOutput]) -> dict[str, Any]:
    """What users saw of requests that were sent together.

    Parameters
    ----------
    answers : sequence of RequestFuncOutput
        From `send`.

    Returns
    -------
    dict
        ``ttft_p50_s``, ``ttft_max_s``: seconds to the first token, of the median user and of the
        last. In the steady state, from when every user has a token until the first has all:
        ``itl_p50_ms``, ``itl_p99_ms``: milliseconds between tokens; ``decode_tokens_per_s``: of all
        users together; ``steady_s``: how long it is. The first three are None where it is empty.
        ``output_tokens``, ``cached_tokens``: of all users, generated, and of the prompts found in
        the radix cache.
    """
    first = [answer.ttft for answer in answers]
    # When each token came: what a chunk brings at once, the client spreads over its tokens.
    times = [answer.start_time + answer.ttft + np.cumsum([0.0, *answer.itl]) for answer in answers]
    begin = max(each[0] for each in times)
    end = min(each[-1] for each in times)
    steady = [each[(each >= begin) & (each <= end)] for each in times]
    gaps = np.concatenate([np.diff(each) for each in steady]) * 1e3
    made = sum(int((each > begin).sum()) for each in steady)
    low, high = np.percentile(gaps, (50, 99)).tolist() if gaps.size else (None, None)
    return {
        "ttft_p50_s": median(first),
        "ttft_max_s": max(first),
        "itl_p50_ms": low,
        "itl_p99_ms": high,
        "decode_tokens_per_s": made / float(end - begin) if gaps.size else None,
        "steady_s": max(float(end - begin), 0.0),
        "output_tokens": sum(answer.output_len for answer in answers),
        "cached_tokens": sum(answer.cached_tokens for answer in answers),
    }
