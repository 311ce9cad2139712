"""Training end to end on a tiny model, from text to weights that load."""

import pytest
from rich.console import Console
from transformers import AutoConfig

from hata_kernels.attend import RATIOS
from hata_sglang.errors import HataError, Refusal
from hata_sglang.methods.hata import HataRecipe
from hata_sglang.training.attention_mass import TopK
from hata_sglang.training.capture import Sampling
from hata_sglang.training.data import DataError
from hata_sglang.training.train import TrainOptions, train
from hata_sglang.weights import check_against_model, load_weights

QUIET = Console(quiet=True)
RECIPE = HataRecipe(steps=60, queries_per_step=16, keys_per_step=128, sink=2, recent=2)
OPTIONS = TrainOptions(
    bits=32,
    sequence_length=200,
    minimum_length=100,
    sampling=Sampling(queries=32, tail_queries=8, tail=20),
    budgets=(TopK(24, 2, 2), TopK(12, 2, 2)),
    evaluate_every=20,
)


def run(model_dir, text_file, out, recipe=RECIPE, options=OPTIONS, **kwargs):
    return train(
        model_dir, [text_file], [], out, recipe=recipe, options=options, console=QUIET, **kwargs
    )


@pytest.fixture(scope="module")
def trained(model_dir, tmp_path_factory):
    import random

    from_words = random.Random(0)
    words = ["river", "stone", "lamp", "walks", "reads", "green", "under", "seven", "old", "door"]
    folder = tmp_path_factory.mktemp("trained")
    text = folder / "train.txt"
    text.write_text(" ".join(from_words.choices(words, k=400))[:2000], encoding="utf-8")
    card = run(model_dir, text, folder / "tiny-32b", work_dir=folder / "work")
    return folder, text, card


def test_weights_load_fit_the_model_and_say_where_they_come_from(trained, model_dir):
    folder, text, card = trained
    weights = load_weights(folder / "tiny-32b")
    assert weights.card == card
    assert check_against_model(weights, AutoConfig.from_pretrained(model_dir)) == []
    assert card.shapes == {"weight": (2, 16, 32)}
    assert card.layers == (0, 1)
    assert weights.encoder(1).weight.shape == (2, 16, 32)
    assert (card.name, card.model, card.method, card.bits) == ("tiny-32b", "tiny-llama", "hata", 32)
    assert card.training_data.files.keys() == {"train.txt"}
    data = card.training_data
    assert (data.sequences, data.validation_sequences, data.held_out_sequences) == (8, 1, 1)
    assert (data.tokens, data.validation_tokens, data.held_out_tokens) == (1600, 200, 200)
    assert data.step_chosen_on == "validation"
    assert card.recipe["objective"] == "attention"
    assert str(text.parent) not in card.model_dump_json()


def test_the_card_says_what_the_run_cost(trained):
    cost = trained[2].created_by
    assert cost["device"] == "cpu"
    # Both are rounded.
    assert float(cost["wall_seconds"]) >= float(cost["layer_seconds"]) > 0
    assert 0.1 < float(cost["peak_host_memory_gb"]) < 100
    assert cost["layers_from_earlier_run"] == "0"
    assert "peak_gpu_memory_gb" not in cost


def test_trained_codes_keep_more_attention_than_random_ones(trained):
    for held_out in trained[2].held_out:
        mean = held_out.mean
        assert mean["exact"] > mean["hata"] > mean["random"]
        assert mean["hata"] > mean["streaming"]


def test_held_out_texts_say_what_the_mean_of_the_values_left_out_is_worth(trained):
    folder, _, card = trained
    left_out = load_weights(folder / "tiny-32b").left_out
    assert {layer: weights.shape for layer, weights in left_out.items()} == {
        0: (4, RATIOS),
        1: (4, RATIOS),
    }
    for held_out in card.held_out:
        error = held_out.output_error
        assert error.keys() == {"exact", "hata", "hata + mean"}
        # That it is worth something is for models with attention to sum up: test_left_out.py.
        assert error["exact"] < error["hata"] != error["hata + mean"]
        assert held_out.output_error_per_layer["exact"].keys() == {0, 1}


def test_same_seed_same_weights_other_seed_other_weights(trained, model_dir, tmp_path):
    _folder, text, card = trained
    again = run(model_dir, text, tmp_path / "tiny-32b")
    assert again.sha256 == card.sha256
    other = run(
        model_dir, text, tmp_path / "other", options=TrainOptions(**vars(OPTIONS) | {"seed": 1})
    )
    assert other.sha256 != card.sha256


def test_the_papers_objective_trains_and_is_named_in_the_card(trained, model_dir, tmp_path):
    folder, text, card = trained
    recipe = HataRecipe(objective="paper", steps=40, queries_per_step=8, keys_per_step=128)
    paper = run(model_dir, text, tmp_path / "paper", recipe, work_dir=folder / "work")
    assert paper.recipe["objective"] == "paper"
    assert paper.recipe["learning_rate"] == 0.1
    assert paper.recipe["paper_epsilon"] == 0.01
    assert paper.sha256 != card.sha256
    assert paper.held_out[0].mean["exact"] == card.held_out[0].mean["exact"]


def test_a_rate_that_diverges_is_refused(trained, model_dir, tmp_path):
    folder, text, _ = trained
    recipe = HataRecipe(objective="paper", steps=40, learning_rate=1e30)
    with pytest.raises(HataError, match=r"layer 0: expected finite weights.*--learning-rate"):
        run(model_dir, text, tmp_path / "x", recipe, work_dir=folder / "work")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("method", ["hata", "asymmetric"])
@pytest.mark.parametrize("bits", [0, 33, -32])
def test_bits_that_do_not_fill_words_are_refused(model_dir, text_file, tmp_path, method, bits):
    options = TrainOptions(**vars(OPTIONS) | {"bits": bits})
    with pytest.raises(Refusal, match=f"bits: expected a positive multiple of 32, found {bits}"):
        run(model_dir, text_file, tmp_path / "x", None, options, method=method)


def test_a_folder_without_a_model_is_refused(text_file, tmp_path):
    with pytest.raises(Refusal, match="model: expected a folder with a Hugging Face checkpoint"):
        run(tmp_path, text_file, tmp_path / "x")


def test_an_unknown_method_is_refused(model_dir, text_file, tmp_path):
    with pytest.raises(Refusal, match=r"method: expected asymmetric, .*, found 'hashing'"):
        run(model_dir, text_file, tmp_path / "x", method="hashing")


def test_a_recipe_of_another_method_is_refused(model_dir, text_file, tmp_path):
    with pytest.raises(Refusal, match="recipe: expected AsymmetricRecipe, found HataRecipe"):
        run(model_dir, text_file, tmp_path / "x", method="asymmetric")


def test_held_out_text_must_differ(model_dir, text_file, tmp_path):
    with pytest.raises(
        DataError, match=r"found the same text in --data .train\.txt. and --held-out"
    ):
        train(model_dir, [text_file], [text_file], tmp_path / "x", options=OPTIONS, console=QUIET)


def test_one_sequence_cannot_be_split(model_dir, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("x" * 150)
    with pytest.raises(DataError, match=r"expected at least 3 of 100 tokens or more.*found 1\."):
        run(model_dir, path, tmp_path / "x")
