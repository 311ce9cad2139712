"""A sparse server's answers against transformers' model under the very selections, in float32.

Nothing of the serving path computes the expected numbers: transformers has the model, keeps the
keys and attends; which tokens a decode step may see follows from the bits' definition (products in
float32, `hata_kernels.encoders.Encoder.key_bits`) and a sort in Python.
"""

from __future__ import annotations

import pytest
import torch

from hata_sglang.weights import load_weights

pytestmark = pytest.mark.slow

WEIGHTS = {
    "asymmetric": "smollm2-135m-instruct-asymmetric-128b",
    "hata": "smollm2-135m-instruct-hata-128b",
}
BUDGET, SINK, RECENT, DENSE = 96, 16, 32, (0, 1)
PROMPT, NEW_TOKENS, TOP = 700, 12, 20


def yaml(method: str) -> str:
    return (
        f"method: {method}\nweights: {WEIGHTS[method]}\nbudget: {BUDGET}\nsink: {SINK}\n"
        f"recent: {RECENT}\ndense_layers: {list(DENSE)}\n"
    )


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
        layer = module.layer_idx
        if steps == 1 and self.weights is not None and layer not in DENSE:
            kept = self.select(layer, query[0, :, 0], key[0].transpose(0, 1))
            mask = torch.stack(kept).repeat_interleave(heads // kv_heads, 0).unsqueeze(1)
        logits = query[0] @ key[0].repeat_interleave(heads // kv_heads, 0).transpose(1, 2) * scaling
        attention = logits.masked_fill(~mask, -torch.inf).softmax(-1)
        out = attention @ value[0].repeat_interleave(heads // kv_heads, 0)
        return out.transpose(0, 1)[None], None

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
    start, connect, make_prompt, log_probabilities, method
):
    prompt, weights = make_prompt(PROMPT, 300), load_weights(WEIGHTS[method])
    with start(yaml(method)) as server:
        answer = connect(server).post(
            "/generate",
            {
                "input_ids": prompt,
                "return_logprob": True,
                "top_logprobs_num": TOP,
                "sampling_params": {
                    "temperature": 0,
                    "max_new_tokens": NEW_TOKENS,
                    "ignore_eos": True,
                },
            },
        )
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
