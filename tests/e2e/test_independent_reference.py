"""A sparse server's answers against transformers' model under the very selections, in float32.

Nothing of the serving path computes the expected numbers: transformers has the model, keeps the
keys and attends; which tokens a decode step may see follows from the bits' definition (products in
float32, `hata_kernels.encoders.Encoder.key_bits`) and a sort in Python; the mean of the values left
out is taken over these very values.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from hata_kernels.attend import RATIOS
from hata_sglang.weights import HashWeights, load_weights, save_weights

pytestmark = pytest.mark.slow

WEIGHTS = {
    "asymmetric": "smollm2-135m-instruct-asymmetric-128b",
    "hata": "smollm2-135m-instruct-hata-128b",
}
BUDGET, SINK, RECENT, DENSE = 96, 16, 32, (0, 1)
PROMPT, NEW_TOKENS, TOP = 700, 12, 20


def yaml(method: str, weights: str | Path) -> str:
    return (
        f"method: {method}\nweights: {weights}\nbudget: {BUDGET}\nsink: {SINK}\n"
        f"recent: {RECENT}\ndense_layers: {list(DENSE)}\n"
    )


def with_mean(weights: HashWeights, folder: Path) -> HashWeights:
    """A set with the same codes, and larger weights of the mean than any calibration gives."""
    card = weights.card.model_copy(update={"name": "mean", "left_out": True})
    heads = torch.linspace(0.1, 0.5, card.fingerprint.num_attention_heads)
    left_out = dict.fromkeys(card.layers, heads[:, None] * (torch.arange(RATIOS) > 0))
    encoders = {layer: weights.encoder(layer) for layer in card.layers}
    save_weights(folder, card, encoders, left_out=left_out)
    return load_weights(folder)


class Masked:
    """Attention of transformers' model: a decode step of a sparse layer sees its selection alone.

    Parameters
    ----------
    weights : HashWeights or None
        None: every step sees everything.
    """

    def __init__(self, weights) -> None:
        self.weights, self.encoders, self.bits = weights, {}, {}

    def __call__(self, module, query, key, value, attention_mask, scaling, **_):
        _, heads, steps, _ = query.shape
        length, kv_heads = key.shape[2], key.shape[1]
        mask = torch.ones(heads, steps, length, dtype=torch.bool).tril(length - steps)
        layer, shared = module.layer_idx, heads // kv_heads
        values = value[0].repeat_interleave(shared, 0)
        if steps == 1 and self.weights is not None and layer not in DENSE:
            kept = self.select(layer, query[0, :, 0], key[0].transpose(0, 1))
            mask = torch.stack(kept).repeat_interleave(shared, 0).unsqueeze(1)
        logits = query[0] @ key[0].repeat_interleave(shared, 0).transpose(1, 2) * scaling
        out = logits.masked_fill(~mask, -torch.inf).softmax(-1) @ values
        if not mask.all() and self.weights is not None and self.weights.left_out and steps == 1:
            mean = (~mask).float() @ values / (length - BUDGET)
            share = self.share(layer, length)[:, None, None]
            out = (1 - share) * out + share * mean
        return out.transpose(0, 1)[None], None

    def share(self, layer: int, length: int) -> torch.Tensor:
        """What the mean weighs, by query head."""
        ratio = math.log2(length / BUDGET)
        low, weights = int(ratio), self.weights.left_out[layer]
        return weights[:, low] + (ratio - low) * (weights[:, low + 1] - weights[:, low])

    def select(self, layer: int, q: torch.Tensor, k: torch.Tensor) -> list[torch.Tensor]:
        """Which of the keys ``[T, Hkv, D]`` a step with queries ``[Hq, D]`` keeps, by KV head."""
        encoder = self.encoders.setdefault(layer, self.weights.encoder(layer))
        length = len(k)
        key_bits, planes = encoder.key_bits(k), encoder.query_bits_of(q[None])[0]
        scales = encoder.key_scales(k)
        agreement = (key_bits.unsqueeze(2) == planes).sum(-1) * torch.tensor(encoder.plane_weights)
        scores = agreement.sum(-1)
        if scales is not None:
            full = encoder.bits * sum(encoder.plane_weights)
            scores = (2 * scores - full) * scales
        forced = {*range(SINK), *range(length - RECENT, length)}
        kept = []
        for column in scores.T.tolist():
            order = sorted(range(length), key=lambda t: (t not in forced, -column[t], t))
            mask = torch.zeros(length, dtype=torch.bool)
            mask[order[:BUDGET]] = True
            kept.append(mask)
        return kept


@pytest.fixture(scope="module")
def log_probabilities(demo_model):
    """Function of (prompt, tokens, weights): float32 ``[len(tokens), vocabulary]``."""
    from transformers import AttentionInterface, AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32)

    @torch.no_grad()
    def compute(prompt, tokens, weights):
        AttentionInterface.register("masked", Masked(weights))
        reference.set_attn_implementation("masked")
        rows, cache = [], None
        for ids in (prompt, *([token] for token in tokens[:-1])):
            answer = reference(torch.tensor([ids]), past_key_values=cache, use_cache=True)
            cache = answer.past_key_values
            rows.append(answer.logits[0, -1].log_softmax(-1))
        return torch.stack(rows)

    return compute


@pytest.mark.parametrize("method", WEIGHTS)
def test_a_sparse_server_computes_what_transformers_does_under_its_selections(
    start, connect, make_prompt, log_probabilities, tmp_path, method
):
    """One of the servers mixes in the mean of the values left out: of a prompt that is prefilled in
    pieces, and of another that begins with it, which the radix tree has.
    """
    prompt, weights, name = make_prompt(PROMPT, 300), load_weights(WEIGHTS[method]), WEIGHTS[method]
    prompts, mean = [prompt], method == "hata"
    if mean:
        weights, name = with_mean(weights, tmp_path / "mean"), tmp_path / "mean"
        prompts.append(prompt + prompt[100:140])
    request = {
        "return_logprob": True,
        "top_logprobs_num": TOP,
        "sampling_params": {
            "temperature": 0,
            "max_new_tokens": NEW_TOKENS,
            "ignore_eos": True,
        },
    }
    with start(yaml(method, name), "--chunked-prefill-size", "256") as server:
        client = connect(server)
        answers = [client.post("/generate", request | {"input_ids": ids}) for ids in prompts]
        facts = client.counters()
    assert facts["left_out_layers"] == (28 if mean else 0)
    cached = [answer["meta_info"]["cached_tokens"] for answer in answers]
    assert cached[1:] == [PROMPT] * (len(prompts) - 1)
    for answer, ids in zip(answers, prompts, strict=True):
        check(answer, ids, method, weights, log_probabilities)
    if mean:  # it matters: answers without it would not pass
        plain = dataclasses.replace(weights, left_out={})
        with pytest.raises(AssertionError):
            check(answers[0], prompt, method, plain, log_probabilities)


def check(answer, prompt, method, weights, log_probabilities) -> None:
    """Compare a server's answer with the model under the selections, and with all tokens."""
    tokens, top = answer["output_ids"], answer["meta_info"]["output_top_logprobs"]
    sparse, dense = (log_probabilities(prompt, tokens, w) for w in (weights, None))
    assert tokens == sparse.argmax(-1).tolist()

    def error(expected: torch.Tensor) -> float:
        """Largest difference of a decode step's best log-probabilities."""
        return max(
            abs(found - float(expected[step, token]))
            for step, row in enumerate(top)
            for found, token, _ in row
            if step > 0
        )

    print(f"{method}: error {error(sparse):.5f}, of dense attention {error(dense):.5f}")
    assert error(sparse) < 0.005
    assert error(dense) > 0.1  # the selections matter: a server that read all would not pass
