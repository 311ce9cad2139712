"""One sparse server: radix reuse, batching, flushing, accounting, both APIs, other weights."""

from __future__ import annotations

import json
import re
import threading
import urllib.error
import urllib.request

import pytest
import torch

from hata_sglang.cli import main
from hata_sglang.weights import load_weights, save_weights

pytestmark = pytest.mark.slow

SPARSE = """
method: hata
weights: smollm2-135m-instruct-hata-128b
budget: 96
sink: 16
recent: 32
dense_layers: [0, 1]
traffic: {folder: traffic, share: 1, requests: 12, min: 200, max: 400}
"""
SHIPPED = "smollm2-135m-instruct-hata-128b"


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
    more = {"tokens_encoded", "config", "weights", "traffic"}
    assert set(hata) - set(facts) == totals | more
    assert hata["weights"] == SHIPPED
    assert hata["layer_steps"] == 28 * hata["decode_steps"] > 0


def test_server_says_what_it_does(client):
    log = client.server.log_path.read_text()
    assert "--device cpu  (no CUDA device found" in log
    on = "hata is on: method hata, 128 bits, layers 2-29 of 30 decode sparse, budget 96, beside "
    assert on + "torch_native" in log
    assert not re.search(r"Traceback", log)


@pytest.fixture(scope="module")
def other_set(tmp_path_factory):
    """A set like the shipped one whose numbers were drawn."""
    folder, shipped = tmp_path_factory.mktemp("sets") / "other", load_weights(SHIPPED)
    generator = torch.Generator().manual_seed(0)
    encoders = {layer: shipped.encoder(layer) for layer in shipped.layers}
    for encoder in encoders.values():
        encoder.weight.copy_(torch.randn(encoder.weight.shape, generator=generator))
    save_weights(folder, shipped.card, encoders)
    return str(folder)


def swap(client, ref: str) -> str:
    answer = client.post("/weights_checker", {"action": f"hata_weights={ref}"})
    assert answer["success"]
    assert client.counters()["weights"] == ref
    return answer["message"]


def test_weights_are_swapped_under_load(client, make_prompt, other_set):
    """Afterwards old prompts and new ones are answered as by a server that started with them."""
    prompts = [make_prompt(220 + 40 * n, 300 + n) for n in range(2)]
    fresh = {}
    for ref in (other_set, SHIPPED):
        assert "in 28 layers, all codes made again" in swap(client, ref)
        client.flush()  # no code of before is left
        fresh[ref] = [client.generate(prompt) for prompt in prompts]
    assert fresh[other_set] != fresh[SHIPPED]

    swap(client, other_set)
    done, failures, over = [], [], threading.Event()

    def load():
        while not over.is_set():
            try:
                done.append(client.together([make_prompt(80, len(done)), *prompts]))
            except Exception as error:
                failures.append(error)
                return

    thread = threading.Thread(target=load)
    thread.start()
    try:
        for ref, rounds in ((SHIPPED, 1), (other_set, 2)):
            before = len(done)
            swap(client, ref)
            while len(done) < before + rounds and thread.is_alive():
                over.wait(0.05)  # the first round began before the swap
    finally:
        over.set()
        thread.join()
    assert failures == []
    assert done[-1][1:] == fresh[other_set]
    # Prompts that lie in the cache since before the last swap: their codes were made again.
    assert [client.generate(prompt) for prompt in prompts] == fresh[other_set]
    swap(client, SHIPPED)
    assert [client.generate(prompt) for prompt in prompts] == fresh[SHIPPED]


def test_a_set_that_does_not_fit_is_refused_with_its_reason(client, make_prompt):
    prompt = make_prompt(300, 310)
    before = client.generate(prompt)
    with pytest.raises(urllib.error.HTTPError) as error:
        swap(client, "smollm2-135m-instruct-hata-64b")
    assert error.value.code == 400
    answer = json.load(error.value)
    assert "bits of layers 2-29: expected 64 (those of weights" in answer["message"]
    assert client.counters()["weights"] == SHIPPED
    assert client.generate(prompt) == before


def test_traffic_trains_weights_that_are_swapped_in(
    client, make_prompt, other_set, tmp_path, capsys
):
    swap(client, other_set)
    for n in range(10):
        client.generate(make_prompt(200 + n, 400 + n), new_tokens=2)
    command = ["calibrate", "--url", client.server.base_url, "--out", str(tmp_path / "new")]
    assert main([*command, "--steps", "5", "--budget", "60:8:8"]) == 0
    said = capsys.readouterr().out
    before, after = map(float, re.search(r"k = 60: (.*) before, (.*) after", said).groups())
    assert before < after
    assert "in 28 layers, all codes made again" in said
    assert client.counters()["weights"] == str(tmp_path / "new")
    card = load_weights(tmp_path / "new").card
    assert card.layers == tuple(range(2, 30))
    assert "live requests" in card.training_data.description
    assert card.training_data.held_out_sequences == 1
    assert client.generate(make_prompt(300, 311))
    swap(client, SHIPPED)
