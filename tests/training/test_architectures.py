"""Several architectures: the right layers, training end to end."""

import numpy as np
import pytest
import torch
import transformers
from rich.console import Console

import tiny_models as tiny
from hata_sglang.errors import Refusal
from hata_sglang.methods.hata import HataRecipe
from hata_sglang.training.architectures import TrainableLayers, plan_layers
from hata_sglang.training.attention_mass import TopK
from hata_sglang.training.capture import Sampling
from hata_sglang.training.checkpoint import read_config
from hata_sglang.training.train import TrainOptions, train
from hata_sglang.weights import check_against_model, load_weights

LAYERS = {"gemma3_text": (2,), "qwen2-window": (0,)}
SAMPLING = Sampling(queries=16, tail_queries=8, tail=20)


@pytest.fixture(scope="module", params=sorted(tiny.MODELS))
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / request.param
    tiny.tiny_model(request.param).save_pretrained(folder)
    return folder


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


def test_windows_in_every_layer_are_refused():
    expected = "expected at least one with full attention, found a sliding window of 4096 tokens"
    with pytest.raises(Refusal, match=expected):
        plan_layers(transformers.MistralConfig(sliding_window=4096))
