"""Workloads of `bench serve`: sizes, prompts, the command line, and the flags of the arms."""

import argparse
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer

from hata_sglang import cli
from hata_sglang.bench.serve_arms import (
    common_flags,
    context_length,
    make_arms,
    random_codes,
)
from hata_sglang.bench.serve_cli import add_serve_arguments, make_workloads
from hata_sglang.bench.shapes import SHAPES, write_model
from hata_sglang.bench.workloads import FIRST_TOKEN, Workload, read_workload
from hata_sglang.config import HataConfig
from hata_sglang.errors import Refusal

SHARED = Workload("shared", 3, 100, 8, question=20)


def parse(*argv):
    parser = argparse.ArgumentParser()
    add_serve_arguments(parser)
    return parser.parse_args(["--out", "x.csv", *argv])


def test_shared_prompts_have_one_document():
    document, prompts = SHARED.prompts(1000)
    assert len(document) == 100
    assert [len(prompt) for prompt in prompts] == [120] * 3
    assert all(prompt[:100] == document for prompt in prompts)
    assert len({tuple(prompt[100:]) for prompt in prompts}) == 3
    assert all(FIRST_TOKEN <= token < 1000 for prompt in prompts for token in prompt)
    assert SHARED.prompts(1000) == (document, prompts)


def test_unrelated_prompts_share_nothing():
    document, (first, *others) = Workload("unrelated", 4, 50, 8).prompts(1000)
    assert document == []
    assert all(prompt[:8] != first[:8] for prompt in others)


def test_sizes():
    assert (SHARED.prompt, SHARED.pool) == (120, 100 + 3 * 28)
    assert Workload("short", 64, 500, 12).pool == 64 * 512
    assert context_length([SHARED]) > 128
    assert read_workload("unrelated=8x32K") == ("unrelated", (8, 32768))
    assert read_workload("short") == ("short", None)


@pytest.mark.parametrize("text", ["one=8", "one=8x", "one=x8", "one=0x5", "one=8xK", "one=-1x5"])
def test_bad_sizes(text):
    with pytest.raises(argparse.ArgumentTypeError, match="USERSxTOKENS"):
        read_workload(text)


def test_default_workloads():
    names = [str(each) for each in make_workloads(parse(), small=False)]
    assert names == [
        "one 1x131072",
        "unrelated 8x32768",
        "shared 32x100000",
        "shared 128x100000",
        "short 64x500",
    ]
    small = make_workloads(parse("--workloads", "short", "one"), small=True)
    assert [each.name for each in small] == ["short", "one"]
    assert max(each.prompt + each.output for each in small) <= 8192


def test_given_workloads():
    args = parse("--workloads", "shared=2x1K", "shared=4x1K", "--output-tokens", "50")
    assert make_workloads(args, small=False) == [
        Workload("shared", users, 1024, 50, question=200) for users in (2, 4)
    ]


def test_one_token_has_nothing_between_it():
    with pytest.raises(Refusal, match="--output-tokens"):
        make_workloads(parse("--output-tokens", "1"), small=True)


def test_arms_differ_in_the_backend_alone(tmp_path):
    source = random_codes(64, tmp_path)
    flags = common_flags(tmp_path, [SHARED], on_cpu=False, dummy=True, more=["--dtype", "half"])
    stock, hata = make_arms(flags, "flashinfer", [source], tmp_path)
    assert (stock.name, stock.backend, stock.inner) == ("stock", "flashinfer", "flashinfer")
    assert (hata.name, hata.backend, hata.inner) == ("random-64b", "hata", "flashinfer")
    assert stock.flags == [*flags, "--attention-backend", "flashinfer"]
    assert hata.flags[: len(flags) + 2] == [*flags, "--attention-backend", "hata"]
    completed = yaml.safe_load(Path(hata.flags[-1]).read_text())
    assert completed["inner_backend"] == "flashinfer"
    text = " ".join(flags)
    assert "--cuda-graph-bs-decode 1 3" in text
    assert "--load-format dummy" in text
    assert f"--context-length {context_length([SHARED])}" in text
    assert text.endswith("--dtype half")


def test_an_inner_backend_of_the_yaml_stays(tmp_path):
    source = tmp_path / "a.yaml"
    source.write_text("method: random\nbudget: 1024\ninner_backend: triton\n")
    _, arm = make_arms([], "flashinfer", [source], tmp_path)
    assert arm.inner == "triton"
    assert "inner_backend: triton" in Path(arm.flags[-1]).read_text()
    assert source.read_text().startswith("method")


@pytest.mark.parametrize("names", [["a.yaml", "sub/a.yaml"], ["stock.yaml"]])
def test_arms_of_one_name(names, tmp_path):
    with pytest.raises(Refusal, match="--config: expected files of different names"):
        make_arms([], "flashinfer", [tmp_path / name for name in names], tmp_path)


@pytest.mark.parametrize(("bits", "name"), [(128, "random"), (64, "random-64b")])
def test_random_codes_of_a_model_without_weights(bits, name, tmp_path):
    path = random_codes(bits, tmp_path)
    assert path.stem == name
    plans = HataConfig.load(path).resolve(4, 131072)
    assert [plan.dense for plan in plans] == [True, True, False, False]
    assert (plans[2].method, plans[2].bits) == ("random", bits)


def test_cpu_flags(tmp_path):
    flags = common_flags(tmp_path, [SHARED], on_cpu=True, dummy=False, more=[])
    assert int(flags[flags.index("--max-total-tokens") + 1]) > SHARED.pool
    assert "--cuda-graph-bs-decode" not in flags
    assert "--load-format" not in flags


def test_a_checkpoint_without_weights(tmp_path):
    """Every token that it may generate is text: the client takes one without for none."""
    folder = write_model(SHAPES["tiny"], tmp_path, 512)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode([0, 5, 4095], skip_special_tokens=True) == "0 5 4095"
    assert tokenizer.encode("The capital of 17")[-1] == 17


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--model", "m", "--shape", "tiny"], "not allowed with"),
        (["--shape", "gpt"], "argument --shape: invalid choice: 'gpt'"),
        (["--bits", "0"], "expected a whole number above 0"),
        (["--workloads", "one=5"], "expected NAME=USERSxTOKENS (8x32K), found 'one=5'"),
        (["--workloads", "many"], "expected one of one, unrelated, shared, short, found 'many'"),
    ],
)
def test_usage_errors(argv, words, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["bench", "serve", "--out", "x.csv", *argv])
    assert caught.value.code == 2
    assert words in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--model", "none"], "--config: expected a YAML file for this model"),
        (["--model", "none", "--config", "a.yaml"], "expected a folder with a Hugging Face"),
        (["--shape", "tiny", "--config", "none.yaml"], "none.yaml"),
        (["--bits", "64"], "--bits: expected --shape without --config"),
        (["--shape", "tiny", "--config", "a.yaml", "--bits", "64"], "--bits: expected --shape"),
    ],
)
def test_refusals(argv, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", "serve", "--out", "x.csv", *argv]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "x.csv").exists()
