"""Captured queries and keys are those that attention uses."""

import pytest
import torch

from hata_sglang.errors import HataError
from hata_sglang.training.capture import CaptureStore, Sampling, capture_sequences
from hata_sglang.training.data import TokenSequence
from hata_sglang.training.visiting import recording, visit_layers


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
    done = capture_sequences(
        model, [TokenSequence("test", tokens)], store, [0], sampling=sampling, seed=0
    )
    assert list(done) == [1]
    assert not (tmp_path / "layer-001").exists()

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


def capture(model, store, layers):
    tokens = TokenSequence("test", tuple(range(40)))
    sampling = Sampling(queries=8, tail_queries=4, tail=16)
    return list(capture_sequences(model, [tokens], store, layers, sampling=sampling, seed=0))


def test_the_model_runs_no_further_than_the_last_layer_asked_for(model, tmp_path, monkeypatch):
    def unreachable(*_args, **_kwargs):
        raise AssertionError("layer 1 ran")

    monkeypatch.setattr(model.model.layers[1], "forward", unreachable)
    assert capture(model, CaptureStore(tmp_path), [0]) == [1]


def test_a_layer_that_does_not_report_is_refused(model, tmp_path):
    with pytest.raises(HataError, match=r"keys and values of layers \[1, 7\].*only of \[1\]"):
        capture(model, CaptureStore(tmp_path), [1, 7])


@pytest.mark.parametrize("projection", ["q_proj", "k_proj", "v_proj"])
def test_a_damaged_model_is_refused(model_dir, tmp_path, projection):
    from transformers import AutoModelForCausalLM

    broken = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    getattr(broken.model.layers[1].self_attn, projection).weight.data[0, 0] = torch.nan
    with pytest.raises(HataError, match="model, layer 1: expected finite queries, keys and values"):
        capture(broken, CaptureStore(tmp_path), [0, 1])


def test_values_are_those_that_attention_uses(model):
    tokens = tuple(range(40))
    found = []
    visit_layers(
        model, TokenSequence("", tokens), [0], torch.tensor([30]), lambda *case: found.append(case)
    )
    ((number, q, _, v, _),) = found
    layer = model.model.layers[0]
    with torch.no_grad():
        hidden = layer.input_layernorm(model.model.embed_tokens(torch.tensor(tokens)))
        expected = layer.self_attn.v_proj(hidden).view(40, 2, 16)
    torch.testing.assert_close(v.float(), expected, rtol=2**-8, atol=1e-3)
    assert (number, q.shape) == (0, (1, 4, 16))


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
