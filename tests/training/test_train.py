"""Training end to end on a tiny model, from text to weights that load."""

import argparse
import json

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoConfig

from hata_sglang.errors import HataError, Refusal
from hata_sglang.evaluation.attention_mass import Budget
from hata_sglang.training import captures as captures_module
from hata_sglang.training.capture import Sampling
from hata_sglang.training.cli import add_train_arguments, parse_budget, run_train
from hata_sglang.training.data import DataError
from hata_sglang.training.hata import HataRecipe
from hata_sglang.training.train import TrainOptions, train
from hata_sglang.weights import check_against_model, load_weights

QUIET = Console(quiet=True)
RECIPE = HataRecipe(steps=60, queries_per_step=16, keys_per_step=128, sink=2, recent=2)
OPTIONS = TrainOptions(
    bits=32,
    sequence_length=200,
    minimum_length=100,
    sampling=Sampling(queries=32, tail_queries=8, tail=20),
    budgets=(Budget(24, 2, 2), Budget(12, 2, 2)),
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
    assert {layer: tuple(t.shape) for layer, t in weights.tensors.items()} == {
        0: (2, 16, 32),
        1: (2, 16, 32),
    }
    assert (card.name, card.model, card.method, card.bits) == ("tiny-32b", "tiny-llama", "hata", 32)
    assert card.training_data.files.keys() == {"train.txt"}
    assert (card.training_data.sequences, card.training_data.held_out_sequences) == (8, 2)
    assert card.recipe["objective"] == "attention"
    assert str(text.parent) not in card.model_dump_json()


def test_trained_codes_keep_more_attention_than_random_ones(trained):
    for held_out in trained[2].held_out:
        mean = held_out.mean
        assert mean["exact"] > mean["hata"] > mean["random"]
        assert mean["hata"] > mean["streaming"]


def test_same_seed_same_weights_other_seed_other_weights(trained, model_dir, tmp_path):
    _folder, text, card = trained
    again = run(model_dir, text, tmp_path / "tiny-32b")
    assert again.sha256 == card.sha256
    other = run(
        model_dir, text, tmp_path / "other", options=TrainOptions(**vars(OPTIONS) | {"seed": 1})
    )
    assert other.sha256 != card.sha256


def test_captures_in_the_work_dir_are_used_again_only_for_the_same_run(
    trained, model_dir, tmp_path, monkeypatch
):
    folder, text, card = trained

    def no_model(*_args, **_kwargs):
        raise AssertionError("the model ran")

    monkeypatch.setattr(captures_module, "capture_sequences", no_model)
    again = run(model_dir, text, tmp_path / "again", work_dir=folder / "work")
    assert again.sha256 == card.sha256
    text_2 = tmp_path / "other.txt"
    text_2.write_text(text.read_text().upper())
    marker = folder / "work" / "captures.json"
    before = marker.read_text()
    with pytest.raises(AssertionError, match="the model ran"):
        run(model_dir, text_2, tmp_path / "again", work_dir=tmp_path / "work")
    assert marker.read_text() == before


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


@pytest.mark.parametrize("bits", [0, 33, -32])
def test_bits_that_do_not_fill_words_are_refused(model_dir, text_file, tmp_path, bits):
    options = TrainOptions(**vars(OPTIONS) | {"bits": bits})
    with pytest.raises(Refusal, match=f"bits: expected a positive multiple of 32, found {bits}"):
        run(model_dir, text_file, tmp_path / "x", options=options)


def test_a_folder_without_a_model_is_refused(text_file, tmp_path):
    with pytest.raises(Refusal, match="model: expected a folder with a Hugging Face checkpoint"):
        run(tmp_path, text_file, tmp_path / "x")


def test_an_unknown_method_is_refused(model_dir, text_file, tmp_path):
    with pytest.raises(Refusal, match="method: expected one of hata, found 'hashing'"):
        run(model_dir, text_file, tmp_path / "x", method="hashing")


def test_held_out_text_must_differ(model_dir, text_file, tmp_path):
    with pytest.raises(DataError, match="found the same text in both"):
        train(model_dir, [text_file], [text_file], tmp_path / "x", options=OPTIONS, console=QUIET)


def test_one_sequence_cannot_be_split(model_dir, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("x" * 150)
    with pytest.raises(DataError, match="found one sequence in all"):
        run(model_dir, path, tmp_path / "x")


def test_a_full_disk_is_refused_before_the_model_runs(model_dir, text_file, tmp_path, monkeypatch):
    usage = captures_module.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(captures_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(HataError, match=r"disk at .*: expected .* GB free for captures"):
        run(model_dir, text_file, tmp_path / "x", work_dir=tmp_path / "work")


def test_command_line_trains_and_prints_the_mass(trained, model_dir, tmp_path, capsys):
    _, text, _ = trained
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    out = tmp_path / "from-cli"
    arguments = f"--model {model_dir} --data {text} --out {out} --bits 64 --steps 5 --seed 3"
    arguments += " --sequence-length 200 --minimum-length 100 --budget 24:2:2"
    assert run_train(parser.parse_args(arguments.split())) == 0
    assert "held-out attention mass at k = 24: exact 0." in capsys.readouterr().out
    card = json.loads((out / "card.json").read_text())
    assert (card["bits"], card["seed"], card["recipe"]["steps"]) == (64, 3, 5)
    assert load_file(out / "hash.safetensors")["layers.0.weight"].shape == (2, 16, 64)


def test_cuda_without_a_gpu_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    args = parser.parse_args(["--model", "m", "--data", "d", "--out", "o", "--device", "cuda"])
    with pytest.raises(HataError, match="--device: expected a CUDA device"):
        run_train(args)


@pytest.mark.parametrize("text", ["", "x", "64:16", "64:16:16:1", "32:16:16", "9:-1:0"])
def test_malformed_budgets_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected K or K:SINK:RECENT"):
        parse_budget(text)


def test_budgets_are_parsed():
    assert parse_budget("256:16:64") == Budget(256, 16, 64)
    assert parse_budget("96") == Budget(96, 16, 16)
