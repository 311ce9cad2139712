"""The console script: tables, messages and exit codes, with a model of eight small layers."""

import json
import os
import subprocess
import sys

import pytest
import torch

import hata_sglang
from hata_kernels.attend import RATIOS
from hata_kernels.encoders import LinearEncoder
from hata_sglang import cli
from hata_sglang.demo import model as demo_model
from hata_sglang.errors import Problem, Refusal
from hata_sglang.weights import Card, Fingerprint, save_weights
from hata_sglang.weights.check import read_model

LAYERS, HEADS, KV_HEADS, HEAD_DIM = 8, 4, 2, 16
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HEADS * HEAD_DIM,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "intermediate_size": 64,
    "max_position_embeddings": 4096,
    "vocab_size": 100,
    "dtype": "bfloat16",
}


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model", LLAMA)


def write_model(folder, config):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def yaml(tmp_path):
    def write(text):
        path = tmp_path / "conf.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def weights(tmp_path, model):
    """Make a set of hash weights for the model in the folder `mine`, beside conf.yaml."""

    def make(
        layers=range(2, LAYERS),
        bits=64,
        head_dim=HEAD_DIM,
        model=model,
        scale_bits=0,
        left_out=False,
    ):
        fingerprint = Fingerprint.of(read_model(model).hf_config)
        fingerprint = fingerprint.model_copy(update={"head_dim": head_dim})
        tensors = {"weight": torch.ones(KV_HEADS, head_dim, bits)}
        if scale_bits:
            tensors["scale_step"] = torch.ones(KV_HEADS)
        encoder = LinearEncoder.from_tensors(
            tensors,
            num_kv_heads=KV_HEADS,
            group=HEADS // KV_HEADS,
            head_dim=head_dim,
            scale_bits=scale_bits,
        )
        card = Card(
            name="mine",
            model="tiny-llama",
            fingerprint=fingerprint,
            revision="none",
            method="hata",
            bits=bits,
            layers=tuple(layers),
            shapes={name: tuple(t.shape) for name, t in tensors.items()},
            options=encoder.options(),
            training_data={
                "description": "none",
                "files": {},
                "sequences": 0,
                "tokens": 0,
                "held_out_files": {},
                "held_out_sequences": 0,
                "held_out_tokens": 0,
            },
            seed=0,
            recipe={},
            held_out=[
                {
                    "budget": 96,
                    "sink": 16,
                    "recent": 64,
                    "mean": {"hata": 0.875, "exact": 0.99},
                    "per_layer": {},
                }
            ],
            left_out=left_out,
            sha256="",
            created_by={},
        )
        mean = dict.fromkeys(layers if left_out else (), torch.zeros(HEADS, RATIOS))
        encoders = dict.fromkeys(layers, encoder)
        save_weights(tmp_path / "mine", card, encoders, left_out=mean)

    return make


HATA = "method: hata\nbits: 64\nbudget: 256\nweights: ./mine\n"


def check(path, model):
    return cli.main(["config", "check", str(path), "--model", str(model)])


def cells(output, layer):
    """Cells of one layer's line of the table."""
    lines = [line.replace("│", " ").split() for line in output.splitlines()]
    (found,) = [line for line in lines if line and line[0] == str(layer)]
    return found


def test_the_mean_is_on_where_the_set_weighs_it(yaml, model, weights, capsys):
    weights()
    assert check(yaml(HATA), model) == 0
    assert "Mean of the values left out, in layers: none." in capsys.readouterr().out
    assert check(yaml(HATA + "left_out: mean\n"), model) == 2
    expected = f"left_out of layers 2-{LAYERS - 1}: expected auto or none, as mine does not weigh"
    assert expected in capsys.readouterr().err
    weights(left_out=True)
    layers = "layers: {2: {left_out: none}}\n"
    for line in ("", "left_out: mean\n"):
        assert check(yaml(HATA + line + layers), model) == 0
        found = f"Mean of the values left out, in layers: 3-{LAYERS - 1}."
        assert found in capsys.readouterr().out


def test_demo_stands_for_the_demo_model(yaml, model, weights, capsys, monkeypatch, tmp_path):
    weights()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo_model, "ensure_demo_model", lambda: model)
    assert check(yaml(HATA), "demo") == 0
    assert "context 4,096 tokens" in capsys.readouterr().out
    # A folder of that name goes first, as everywhere.
    (tmp_path / "demo").mkdir()
    assert check(yaml(HATA), "demo") == 2
    assert "demo" in capsys.readouterr().err


def test_table_and_memory(yaml, model, weights, capsys):
    weights()
    assert check(yaml(HATA), model) == 0
    output = capsys.readouterr().out
    # layer, mode, method, bits, budget, @4,096 / 6,000 / 32,768, sink, recent, code bytes
    assert cells(output, 0) == ["0", "dense", *"---", "4,096", "6,000", "32,768", "-", "-", "0"]
    assert cells(output, 7) == ["7", "sparse", "hata", "64", *["256"] * 4, "16", "64", "16"]
    for length in ("4,096", "6,000", "32,768"):
        assert f"@{length} " in output
    assert "Sparse: 6 of 8 layers (2-7); inner backend: auto." in output
    # 6 layers * 2 heads * 8 B of codes; 8 layers * 2 heads * 2 * 16 * 2 B of K and V.
    assert "codes 96 B, K and V 1,024 B (bfloat16): codes add 9.4%." in output
    assert "LlamaForCausalLM, 8 layers, 4 query and 2 KV heads of 16, context 4,096" in output
    assert "hata, 64 bits, scale_bits 0, 6 layers of tiny-llama" in output
    assert "attention mass kept at 96 tokens: exact 0.990, hata 0.875" in output


def test_table_of_a_ratio(yaml, model, capsys):
    text = "method: random\nbudget: {ratio: 0.05, min: 128, max: 1000}\ndense_layers: []\n"
    assert check(yaml(text), model) == 0
    output = capsys.readouterr().out
    assert cells(output, 0)[-6:] == ["205", "300", "1,000", "16", "64", "32"]
    assert "5 % (128 to 1000)" in output


def test_bits_and_scales_of_the_weights_are_shown(yaml, model, weights, capsys):
    weights(bits=96, scale_bits=16)
    assert check(yaml(HATA.replace("bits: 64\n", "")), model) == 0
    output = capsys.readouterr().out
    # 96 bits and a scale of 16 bits, for each of 2 KV heads: 28 bytes a token.
    assert cells(output, 7) == ["7", "sparse", "hata", "96", *["256"] * 4, "16", "64", "28"]
    assert "codes 168 B, " in output
    assert "hata, 96 bits, scale_bits 16, 6 layers" in output


@pytest.mark.parametrize("method", ["exact", "streaming"])
def test_methods_without_codes_need_no_memory(yaml, model, capsys, method):
    assert check(yaml(f"method: {method}\nbudget: 256\n"), model) == 0
    output = capsys.readouterr().out
    assert "codes 0 B, " in output
    assert cells(output, 7) == ["7", "sparse", method, "-", *["256"] * 4, "16", "64", "0"]


def test_nested_text_config(yaml, tmp_path, capsys):
    text = {key: value for key, value in LLAMA.items() if key != "architectures"}
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "text_config": text,
        "vision_config": {"model_type": "clip_vision_model"},
    }
    model = write_model(tmp_path / "nested", config)
    assert check(yaml("method: random\nbudget: 256\n"), model) == 0
    output = capsys.readouterr().out
    assert "LlavaForConditionalGeneration, 8 layers, 4 query and 2 KV heads of 16" in output


def test_model_that_names_neither_kv_heads_nor_head_dim(yaml, tmp_path, capsys):
    config = {**LLAMA, "model_type": "phi", "architectures": ["PhiForCausalLM"]}
    del config["num_key_value_heads"]
    model = write_model(tmp_path / "phi", config)
    assert check(yaml("method: random\nbudget: 256\n"), model) == 0
    assert "4 query and 4 KV heads of 16" in capsys.readouterr().out


def refused(capsys, code):
    assert code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("hata cannot run: ")
    return captured.err


def test_bad_file(yaml, model, capsys):
    error = refused(capsys, check(yaml("method: exact\nbudgt: 3\nsink: -1\n"), model))
    assert "hata cannot run: 3 problems\n" in error
    assert "did you mean 'budget'?" in error


def test_missing_file(tmp_path, model, capsys):
    error = refused(capsys, check(tmp_path / "none.yaml", model))
    assert "none.yaml: expected a YAML file, found no such file" in error


@pytest.mark.parametrize(
    ("make", "found"),
    [(lambda path: None, "no such folder"), (lambda path: path.mkdir(), "no config.json in it")],
    ids=["missing", "empty"],
)
def test_no_model(yaml, tmp_path, capsys, make, found):
    make(tmp_path / "other")
    error = refused(capsys, check(yaml("method: exact\nbudget: 256\n"), tmp_path / "other"))
    assert f"--model: expected a model's folder, with config.json, found {tmp_path}" in error
    assert error.endswith(f"{found}\n")


@pytest.mark.parametrize("content", ["{", '{"model_type": "no-such-type"}', "[]", "{}"])
def test_unreadable_model(yaml, tmp_path, capsys, content):
    model = tmp_path / "broken"
    model.mkdir()
    (model / "config.json").write_text(content)
    error = refused(capsys, check(yaml("method: exact\nbudget: 256\n"), model))
    assert f"--model: expected a config.json that transformers can read ({model})" in error


def test_model_without_attention_numbers(yaml, tmp_path, capsys):
    model = write_model(tmp_path / "vision", {"model_type": "resnet"})
    error = refused(capsys, check(yaml("method: exact\nbudget: 256\n"), model))
    assert "expected a decoder whose config.json gives num_attention_heads" in error


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("num_attention_heads", 0, "num_attention_heads (1 to 2147483647), found 0 in"),
        ("num_key_value_heads", -2, "num_key_value_heads (1 to 2147483647), found -2 in"),
        ("head_dim", "16", "head_dim (1 to 2147483647), found '16' in"),
        ("num_hidden_layers", 10**9, "num_hidden_layers (1 to 10000), found 1000000000 in"),
        (
            "max_position_embeddings",
            10**30,
            "max_position_embeddings (1 to 2147483647), found 1000",
        ),
    ],
)
def test_model_of_odd_sizes(yaml, tmp_path, capsys, bounded, key, value, expected):
    model = write_model(tmp_path / "odd", {**LLAMA, key: value})
    with bounded():
        error = refused(capsys, check(yaml("method: exact\nbudget: 256\n"), model))
    # Some are refused by transformers itself.
    words = [f"config.json gives {expected}", "a config.json that transformers can read"]
    assert any(word in error for word in words)


def test_folder_of_a_model_that_cannot_be(yaml, tmp_path, capsys):
    conf = yaml("method: exact\nbudget: 256\n")
    assert "no such folder" in refused(capsys, check(conf, tmp_path / ("x" * 5000)))
    (tmp_path / "fifo").mkdir()
    os.mkfifo(tmp_path / "fifo" / "config.json")
    assert "no config.json in it" in refused(capsys, check(conf, tmp_path / "fifo"))
    model = write_model(tmp_path / "large", LLAMA)
    os.truncate(model / "config.json", 2**25)
    assert "at most 16,777,216 bytes" in refused(capsys, check(conf, model))


def test_layers_that_the_model_lacks(yaml, model, capsys):
    text = "method: exact\nbudget: 256\nlayers: {7-8: {sink: 1}}\n"
    error = refused(capsys, check(yaml(text), model))
    assert "expected layers of the model (0 to 7), found 7-8" in error


def test_missing_weights(yaml, model, capsys):
    error = refused(capsys, check(yaml(HATA), model))
    assert "weights: expected a folder of hash weights" in error
    assert "mine" in error


def test_weights_without_some_layers(yaml, model, weights, capsys):
    weights(layers=[2, 3, 7])
    error = refused(capsys, check(yaml(HATA), model))
    assert "hata cannot run: 1 problem\n" in error
    assert "weights of layers 4-6: expected trained weights for them in mine, found none" in error


def test_weights_of_other_bits(yaml, model, weights, capsys):
    weights(bits=32)
    error = refused(capsys, check(yaml(HATA), model))
    assert "hata cannot run: 1 problem\n" in error
    assert "bits of layers 2-7: expected 32 (those of weights mine), found 64" in error


def test_weights_of_another_method(yaml, model, weights, capsys):
    weights()
    text = HATA.replace("method: hata", "method: asymmetric")
    error = refused(capsys, check(yaml(text), model))
    assert "hata cannot run: 1 problem\n" in error
    assert "method of layers 2-7: expected hata (that of weights mine), found asymmetric" in error


def test_weights_of_another_model(yaml, model, weights, capsys):
    weights(head_dim=32)
    error = refused(capsys, check(yaml(HATA), model))
    assert "head_dim: expected 32 (trained on tiny-llama), found 16" in error
    assert "layers 2-7" not in error  # said once, not again for every layer


def test_every_bad_set_of_weights_is_reported(yaml, model, weights, capsys):
    weights(bits=32)
    text = HATA + "layers: {3: {weights: ./a}, 4: {weights: ./b}}\n"
    error = refused(capsys, check(yaml(text), model))
    assert "hata cannot run: 3 problems" in error


def test_weights_command_lists_what_is_shipped(monkeypatch, capsys, tmp_path, weights):
    from hata_sglang.weights import check as module

    weights()
    load = module.load_weights
    monkeypatch.setattr(module, "shipped_weights", lambda: ["a-set"])
    monkeypatch.setattr(module, "load_weights", lambda name: load(tmp_path / "mine"))
    assert cli.main(["weights"]) == 0
    name, line = capsys.readouterr().out.splitlines()
    assert name == "a-set"
    assert line.startswith(
        "    hata, 64 bits, scale_bits 0, 6 layers of tiny-llama; attention mass"
    )


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "COMMAND"),
        (["config"], "ACTION"),
        (["config", "chek"], "invalid choice: 'chek'"),
        (["trian"], "invalid choice: 'trian'"),
        (["config", "check"], "FILE, --model"),
        (["config", "check", "x.yaml"], "--model"),
        (["config", "check", "x.yaml", "--model", "m", "--extra"], "--extra"),
        (["weights", "extra"], "extra"),
    ],
)
def test_usage_errors(argv, words, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], *(name.split() for name in cli.COMMANDS)])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, "--help"])
    assert caught.value.code == 0
    assert f"usage: {' '.join(['hata-sglang', *command])}" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"hata-sglang {hata_sglang.__version__}\n"


@pytest.mark.parametrize("command", [name for name in cli.COMMANDS if " " not in name])
def test_a_command_that_refuses(monkeypatch, capsys, command):
    from importlib import import_module

    def refuse(args):
        raise Refusal([Problem("disk", "1 GB free", "none")])

    # Whatever arguments the command requires are not the matter here.
    module, _, declare = cli.COMMANDS[command][0].partition(":")
    ours = lambda parser: parser.set_defaults(action=refuse)  # noqa: E731
    monkeypatch.setattr(import_module(module), declare, ours)
    assert cli.main([command]) == 2
    assert capsys.readouterr().err == str(Refusal([Problem("disk", "1 GB free", "none")])) + "\n"


def test_other_exceptions_keep_their_traceback(monkeypatch, model):
    def broken(args):
        raise RuntimeError("a defect")

    monkeypatch.setattr("hata_sglang.weights.check.run_check", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        check("x.yaml", model)


def run_script(*argv):
    command = [sys.executable, "-m", "hata_sglang.cli", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_exit_codes_of_the_process(yaml, tmp_path):
    done = run_script("--version")
    assert (done.returncode, done.stdout) == (0, f"hata-sglang {hata_sglang.__version__}\n")
    failed = run_script("config", "check", str(yaml("")), "--model", str(tmp_path))
    assert failed.returncode == 2
    assert failed.stderr == (
        "hata cannot run: 1 problem\n"
        f"  - {tmp_path}/conf.yaml: expected a mapping of settings (method, budget, ...), "
        "found an empty file\n"
    )
