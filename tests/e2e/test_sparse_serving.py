"""One sparse server: radix reuse, batching, flushing, accounting, both APIs."""

from __future__ import annotations

import json
import re
import urllib.request

import pytest

pytestmark = pytest.mark.slow

SPARSE = """
method: hata
weights: smollm2-135m-instruct-hata-128b
budget: 96
sink: 16
recent: 32
dense_layers: [0, 1]
"""


#: Decode steps of 16 new tokens: the first comes from prefill, and SGLang's overlap scheduling
#: may start one more step before it sees that a request has ended.
STEPS = (15, 16)


@pytest.fixture(scope="module")
def client(start, connect):
    with start(SPARSE) as server:
        yield connect(server)


def test_is_sparse(client, make_prompt):
    before = client.counters()
    client.generate(make_prompt(1000, 100))
    after = client.counters()
    steps = after["decode_steps"] - before["decode_steps"]
    assert steps in STEPS
    sparse_layers = 28
    assert after["tokens_attended"] - before["tokens_attended"] == steps * sparse_layers * 96
    context = sum(range(1001, 1001 + steps))
    assert after["tokens_in_context"] - before["tokens_in_context"] == context * sparse_layers


def test_cached_prefix_gives_the_same_and_encodes_only_new_tokens(client, make_prompt):
    prompt = make_prompt(1200, 101)
    client.flush()
    start = client.counters()["tokens_encoded"]
    cold = client.generate(prompt)
    middle = client.counters()["tokens_encoded"]
    cached = client.generate(prompt)
    encoded_cold, encoded_cached = middle - start, client.counters()["tokens_encoded"] - middle
    assert cached == cold
    assert encoded_cold - 1200 in STEPS  # the prompt, and every token that was fed back
    assert encoded_cached - 1 in STEPS  # SGLang computes the last prompt token again


def test_two_requests_share_the_codes_of_a_prefix(client, make_prompt):
    prefix = make_prompt(900, 102)
    first, second = prefix + make_prompt(50, 103), prefix + make_prompt(70, 104)
    client.flush()
    alone = [client.generate(first)]
    client.flush()
    alone.append(client.generate(second))
    client.flush()
    start = client.counters()["tokens_encoded"]
    shared = [client.generate(first), client.generate(second)]
    encoded = client.counters()["tokens_encoded"] - start
    assert shared == alone
    assert encoded <= 900 + 50 + 70 + 2 * max(STEPS) + 1


def test_flush_and_refill(client, make_prompt):
    prompt = make_prompt(700, 105)
    before = client.generate(prompt)
    client.flush()
    for seed in range(106, 110):  # other tokens take the slots
        client.generate(make_prompt(600, seed), new_tokens=2)
    client.flush()
    assert client.generate(prompt) == before


def test_concurrent_requests_give_what_each_gives_alone(client, make_prompt):
    prompts = [make_prompt(n, 200 + n) for n in range(20, 1300, 80)]
    assert len(prompts) == 16
    alone = []
    for prompt in prompts:
        client.flush()
        alone.append(client.generate(prompt))
    client.flush()
    together = client.together(prompts)
    different = [len(p) for p, a, b in zip(prompts, alone, together, strict=True) if a != b]
    assert different == []


def test_openai_chat(client):
    from openai import OpenAI

    api = OpenAI(base_url=client.server.base_url + "/v1", api_key="none")
    reply = api.chat.completions.create(
        model="default",
        max_tokens=12,
        temperature=0,
        messages=[{"role": "user", "content": "What is the capital of France?"}],
    )
    assert "Paris" in reply.choices[0].message.content


def test_counters_are_in_server_info(client):
    with urllib.request.urlopen(client.server.base_url + "/server_info", timeout=60) as response:
        info = json.load(response)
    hata = info["internal_states"][0]["hata"]
    facts = {"method": "hata", "bits": 128, "budget": "96", "layers": "2-29", "num_layers": 30}
    facts["left_out_layers"] = 0
    assert hata.items() >= facts.items()
    totals = {"decode_steps", "layer_steps", "tokens_in_context", "tokens_attended"}
    assert set(hata) - set(facts) == totals | {"tokens_encoded", "config"}
    assert hata["layer_steps"] == 28 * hata["decode_steps"] > 0


def test_server_says_what_it_does(client):
    log = client.server.log_path.read_text()
    assert "--device cpu  (no CUDA device found" in log
    on = "hata is on: method hata, 128 bits, layers 2-29 of 30 decode sparse, budget 96, beside "
    assert on + "torch_native" in log
    assert not re.search(r"Traceback", log)
