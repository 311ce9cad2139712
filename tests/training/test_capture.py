"""Captured queries and keys are those that attention uses."""

import pytest
import torch

from hata_sglang.training.capture import CaptureStore, Sampling, capture_sequences, recording
from hata_sglang.training.data import TokenSequence


@pytest.fixture(scope="module")
def model(model_dir):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()


def rope_by_hand(x, theta):
    """Rotate ``[S, H, D]`` as in RoFormer, halves paired as in Llama."""
    length, _, dim = x.shape
    frequencies = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    cos, sin = angles.cos()[:, None].float(), angles.sin()[:, None].float()
    first, second = x[..., : dim // 2], x[..., dim // 2 :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def test_first_layer_equals_projection_and_rope_by_hand(model, tmp_path):
    tokens = tuple(torch.randint(256, (63,), generator=torch.Generator().manual_seed(1)).tolist())
    store = CaptureStore(tmp_path)
    sampling = Sampling(queries=8, tail_queries=4, tail=16)
    sequences = [TokenSequence("test", tokens)]
    assert list(capture_sequences(model, sequences, store, sampling=sampling, seed=0)) == [1]

    layer = model.model.layers[0]
    with torch.no_grad():
        hidden = layer.input_layernorm(model.model.embed_tokens(torch.tensor([tokens])))[0]
        theta = model.config.rope_parameters["rope_theta"]
        q = rope_by_hand(layer.self_attn.q_proj(hidden).view(63, 4, 16), theta)
        k = rope_by_hand(layer.self_attn.k_proj(hidden).view(63, 2, 16), theta)
    capture = store.read(0, 0)
    # stored as bfloat16: 8 bits of mantissa
    torch.testing.assert_close(capture.k, k, rtol=2**-8, atol=1e-3)
    torch.testing.assert_close(capture.q, q[capture.positions], rtol=2**-8, atol=1e-3)
    assert capture.scale == 16**-0.5


def test_captured_q_and_k_give_the_attention_of_the_eager_model(model_dir, model):
    from transformers import AutoModelForCausalLM

    eager = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokens = torch.arange(40)[None]
    seen = {}
    with (
        torch.no_grad(),
        recording(model, lambda layer, q, k, scale: seen.__setitem__(layer, (q, k, scale))),
    ):
        model.base_model(input_ids=tokens, use_cache=False)
    with torch.no_grad():
        attentions = eager.base_model(input_ids=tokens, output_attentions=True).attentions
    assert sorted(seen) == [0, 1]
    for layer, (q, k, scale) in seen.items():
        logits = q @ k.repeat_interleave(2, dim=1).transpose(2, 3) * scale
        mask = torch.ones(40, 40, dtype=torch.bool).tril()
        found = logits.masked_fill(~mask, -torch.inf).softmax(-1)
        torch.testing.assert_close(found, attentions[layer], rtol=1e-4, atol=1e-5)


def test_recording_leaves_output_and_model_as_they_were(model):
    tokens = torch.arange(20)[None]
    before = model.config._attn_implementation
    with torch.no_grad():
        plain = model.base_model(input_ids=tokens).last_hidden_state
        with recording(model, lambda *_: None):
            recorded = model.base_model(input_ids=tokens).last_hidden_state
    assert torch.equal(plain, recorded)
    assert model.config._attn_implementation == before


def test_sampled_positions_lie_in_the_second_half_and_favour_the_end():
    positions = Sampling(queries=64, tail_queries=40, tail=50).positions(
        1001, torch.Generator().manual_seed(0)
    )
    assert len(positions) == 64 == len(set(positions.tolist()))
    assert positions.min() >= 500
    assert positions.max() <= 1000
    assert (positions >= 951).sum() >= 40
    assert torch.equal(positions, positions.sort().values)


def test_a_short_sequence_gives_its_whole_second_half():
    positions = Sampling().positions(9, torch.Generator().manual_seed(0))
    assert positions.tolist() == [4, 5, 6, 7, 8]
