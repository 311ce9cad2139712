"""A budget that covers the context gives what the stock backend gives, token for token.

Nothing is left to the stock backend for that: all layers encode, select every token and attend.
"""

from __future__ import annotations

from itertools import chain

import pytest

from hata_sglang.evaluation.server import ServerProcess

LENGTHS = [round(10 * 400 ** (i / 11)) for i in range(12)]  # 10 to 4,000 tokens
COVER = "method: random\nbudget: 8192\ndense_layers: []\n"


def answers(server: ServerProcess, connect, prompts) -> dict:
    """Outputs one by one, then in batches of 6."""
    with server:
        client = connect(server)
        single = [client.generate(ids) for ids in prompts]
        client.flush()
        batches = [client.generate(prompts[i : i + 6]) for i in range(0, len(prompts), 6)]
        return {
            "single": single,
            "batch": list(chain.from_iterable(batches)),
            "counters": client.counters(),
        }


@pytest.fixture(scope="module")
def outputs(start, connect, make_prompt):
    prompts = [make_prompt(n, seed) for seed, n in enumerate(LENGTHS)]
    return {
        "stock": answers(start(None), connect, prompts),
        "hata": answers(start(COVER), connect, prompts),
    }


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["single", "batch"])
def test_same_tokens_as_the_stock_backend(outputs, mode):
    stock, hata = outputs["stock"][mode], outputs["hata"][mode]
    different = [n for n, a, b in zip(LENGTHS, stock, hata, strict=True) if a != b]
    assert different == [], "context lengths whose greedy tokens differ"


@pytest.mark.slow
def test_all_of_it_was_decoded_by_hata(outputs):
    assert outputs["stock"]["counters"] is None
    counters = outputs["hata"]["counters"]
    assert counters["tokens_encoded"] >= 2 * sum(LENGTHS)
    # Of 16 tokens the first is the prefill's.
    assert counters["decode_steps"] >= 15 * len(LENGTHS)
    assert counters["layer_steps"] == 30 * counters["decode_steps"]
    assert counters["tokens_attended"] == counters["tokens_in_context"]
    assert counters["tokens_in_context"] > 30 * 15 * sum(LENGTHS)
