"""Every architecture: the right layers, q and k as its attention uses them, training end to end."""

import numpy as np
import pytest
import torch
import transformers
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM

import tiny_models as tiny
from hata_sglang.errors import Refusal
from hata_sglang.methods.hata import HataRecipe
from hata_sglang.training.architectures import ARCHITECTURES, TrainableLayers, plan_layers
from hata_sglang.training.attention_mass import TopK
from hata_sglang.training.capture import CaptureStore, Sampling, capture_sequences
from hata_sglang.training.checkpoint import read_config
from hata_sglang.training.data import TokenSequence
from hata_sglang.training.train import TrainOptions, train
from hata_sglang.weights import check_against_model, load_weights

LAYERS = {"gemma3_text": (2,), "gemma3": (2,), "qwen2-window": (0,)}
SAMPLING = Sampling(queries=16, tail_queries=8, tail=20)


@pytest.fixture(scope="module", params=sorted(tiny.MODELS))
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / request.param
    tiny.tiny_model(request.param).save_pretrained(folder)
    return folder


def test_every_known_architecture_has_a_tiny_model():
    found = {plan_model_type(name) for name in tiny.MODELS}
    assert found == set(ARCHITECTURES)


def plan_model_type(name):
    return tiny.MODELS[name]().config.get_text_config().model_type


def test_captures_reproduce_the_models_own_attention(checkpoint, tmp_path):
    config = AutoConfig.from_pretrained(checkpoint)
    plan = plan_layers(config)
    assert plan.trained == LAYERS.get(checkpoint.name, (0, 1))
    text = config.get_text_config()
    assert sorted(plan.trained + plan.skipped) == list(range(text.num_hidden_layers))

    tokens = tuple(torch.randint(3, 256, (80,), generator=torch.manual_seed(1)).tolist())
    store = CaptureStore(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    sequences = [TokenSequence("test", tokens)]
    list(capture_sequences(model, sequences, store, plan.trained, sampling=SAMPLING, seed=0))

    # The eager implementation computes the attention itself and hands it out.
    model.set_attn_implementation("eager")
    seen = {}
    for module in model.get_decoder().modules():
        if hasattr(module, "q_proj"):
            module.register_forward_hook(
                lambda module, _args, output: seen.__setitem__(module.layer_idx, output[1])
            )
    with torch.no_grad():
        model.get_decoder()(input_ids=torch.tensor([tokens]), use_cache=False)
    for layer in plan.trained:
        capture = store.read(layer, 0)
        count, heads, _ = capture.q.shape
        assert (heads, capture.k.shape[1]) == (4, 2)
        keys = capture.k.repeat_interleave(2, dim=1)
        logits = torch.einsum("nhd,shd->hns", capture.q, keys) * capture.scale
        future = torch.arange(80) > capture.positions[:, None]
        found = logits.masked_fill(future, -torch.inf).softmax(-1)
        expected = seen[layer][0][:, capture.positions]
        assert expected.max(-1).values.mean() > 0.1  # far from even: 1 / 60
        # q and k were stored as bfloat16
        torch.testing.assert_close(found, expected, rtol=0.1, atol=0.02)
        assert count == 16


def test_trains_end_to_end(checkpoint, tmp_path):
    rows = torch.randint(3, 256, (4, 120), generator=torch.manual_seed(2))
    np.save(tmp_path / "tokens.npy", rows.numpy())
    options = TrainOptions(
        bits=32,
        sequence_length=120,
        minimum_length=100,
        sampling=SAMPLING,
        budgets=(TopK(16, 2, 2),),
        evaluate_every=3,
    )
    recipe = HataRecipe(steps=6, queries_per_step=8, keys_per_step=64, sink=2, recent=2)
    out = tmp_path / "weights"
    files = [tmp_path / "tokens.npy"]
    console = Console(quiet=True)
    card = train(checkpoint, files, [], out, recipe=recipe, options=options, console=console)
    assert card.layers == LAYERS.get(checkpoint.name, (0, 1))
    weights = load_weights(out)
    assert check_against_model(weights, read_config(checkpoint)) == []
    assert weights.encoder(card.layers[-1]).bits == 32
    assert 0 < card.held_out[0].mean["hata"] <= card.held_out[0].mean["exact"]


def test_a_skipped_layer_is_named():
    assert TrainableLayers((2, 5), (0, 1, 3, 4)).describe() == (
        "layers to train: 2, 5; sliding-window layers left out: 0-1, 3-4"
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        pytest.param(
            transformers.GPT2Config(),
            "model, model_type: expected one of gemma3_text, .*, found 'gpt2'",
            id="unknown",
        ),
        pytest.param(
            transformers.Gemma2Config(),
            "model, attn_logit_softcapping: expected none.*, found 50.0",
            id="soft-cap",
        ),
        pytest.param(
            transformers.MistralConfig(sliding_window=4096),
            "expected at least one with full attention, found a sliding window of 4096 tokens",
            id="windows-only",
        ),
    ],
)
def test_models_that_cannot_be_trained_for_are_refused(config, message):
    with pytest.raises(Refusal, match=message):
        plan_layers(config)
