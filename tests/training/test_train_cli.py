"""``hata-sglang train``: its arguments, and what it prints and writes."""

import argparse
import json

import pytest
import torch
from safetensors.torch import load_file

from hata_sglang.errors import HataError, Refusal
from hata_sglang.methods import method_names, methods
from hata_sglang.methods.hata import HataRecipe
from hata_sglang.methods.learning.loss import PaperLoss
from hata_sglang.training.attention_mass import TopK
from hata_sglang.training.cli import add_train_arguments, parse_budget, run_train
from hata_sglang.training.recipe_options import make_recipe, option_lines


def parse(arguments):
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    return parser.parse_args(arguments.split())


def test_command_line_trains_and_prints_the_mass(model_dir, text_file, tmp_path, capsys):
    out, other = tmp_path / "from-cli", tmp_path / "other.txt"
    other.write_text("".join(chr(97 + n % 7) for n in range(0, 1200, 3)))
    arguments = f"--model {model_dir} --data {text_file} --validation {other}"
    arguments += f" --out {out} --bits 64 --steps 5 --seed 3"
    arguments += " --sequence-length 200 --minimum-length 100 --budget 24:2:2 --dtype float16"
    arguments += " --method hata --option keys_per_step=64 --option scale_bits=8"
    assert run_train(parse(arguments)) == 0
    printed = capsys.readouterr().out
    assert "held-out attention mass at k = 24: exact 0." in printed
    assert "s on cpu, peak host memory" in printed
    card = json.loads((out / "card.json").read_text())
    assert card["training_data"]["validation_files"].keys() == {"other.txt"}
    assert card["training_data"]["validation_sequences"] == 2
    assert (card["bits"], card["seed"], card["recipe"]["steps"]) == (64, 3, 5)
    assert card["recipe"]["keys_per_step"] == 64
    assert card["options"] == {"scale_bits": 8}
    weight = load_file(out / "hash.safetensors")["layers.0.weight"]
    assert weight.shape == (2, 16, 64)
    assert weight.dtype == torch.float16


def test_options_are_typed_by_the_recipe():
    texts = ["learning_rate=0.5", "steps=7", "loss_weights=code", "paper.sigma=0.3"]
    recipe = make_recipe(HataRecipe, [*texts, "schedule=none"])
    assert recipe == HataRecipe(
        learning_rate=0.5,
        steps=7,
        loss_weights="code",
        paper=PaperLoss(sigma=0.3),
        schedule=None,
    )
    # None stands for the objective's own schedule; a constant rate has a word of its own.
    assert not make_recipe(HataRecipe, ["schedule=constant"]).falling


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["step=7"], "--option step: expected a known option .did you mean 'steps'"),
        (["zzz=7"], "--option zzz: expected a known option .valid: objective"),
        (["steps=many"], "--option steps: expected an integer, found 'many'"),
        (["steps"], "--option steps: expected steps=VALUE, found 'steps'"),
        (["scale_bits=9"], "--option scale_bits: expected 0 or 8 or 16, found '9'"),
        (["schedule=linear"], "expected constant or cosine or none, found 'linear'"),
        (["steps=1", "steps=2"], "--option steps: expected one value, found 1 and 2"),
        (["a=1", "paper.sgma=1"], "2 problems(.|\\n)*did you mean 'paper.sigma'"),
    ],
)
def test_options_that_do_not_fit_are_refused(texts, message):
    with pytest.raises(Refusal, match=message):
        make_recipe(HataRecipe, texts)


def test_steps_and_its_option_are_one_setting(tmp_path):
    arguments = "--model m --data d --out o --steps 5 --option steps=6"
    with pytest.raises(Refusal, match="expected one value, found 5 and 6"):
        run_train(parse(arguments))


@pytest.mark.parametrize("method", method_names(trainable=True))
def test_options_of_a_method_are_listed(method, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(f"--method {method} --list-options")
    assert stop.value.code == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == option_lines(methods()[method].recipe)
    steps = [line for line in printed if line.startswith("steps: an integer (default ")]
    assert len(steps) == (method != "rotate")  # which takes none


@pytest.mark.parametrize("text", ["0", "-1", "much", "nan", "inf"])
def test_a_disk_bound_is_a_positive_number(text, capsys):
    with pytest.raises(SystemExit):
        parse(f"--model m --data d --out o --max-disk {text}")
    assert f"expected GB, a number above 0, found '{text}'" in capsys.readouterr().err


def test_cuda_without_a_gpu_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(HataError, match="--device: expected a CUDA device"):
        run_train(parse("--model m --data d --out o --device cuda"))


@pytest.mark.parametrize("text", ["", "x", "64:16", "64:16:16:1", "32:16:16", "9:-1:0"])
def test_malformed_budgets_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected K or K:SINK:RECENT"):
        parse_budget(text)


def test_budgets_are_parsed():
    assert parse_budget("256:16:64") == TopK(256, 16, 64)
    assert parse_budget("96") == TopK(96, 16, 16)
