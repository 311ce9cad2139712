import argparse
import csv

import pytest

from hata_sglang.config import HataConfig
from hata_sglang.errors import Refusal
from hata_sglang.evaluation import serving
from hata_sglang.evaluation.budgets import read_budget
from hata_sglang.evaluation.cli import add_eval_arguments
from hata_sglang.evaluation.client import Client
from hata_sglang.evaluation.sparsity import Arm

YAML = "method: exact\nbudget: 256\n"


def run(*words):
    parser = argparse.ArgumentParser()
    add_eval_arguments(parser)
    args = parser.parse_args([str(word) for word in words])
    return args.action(args)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "exact.yaml"
    path.write_text(YAML)
    return path


@pytest.fixture(autouse=True)
def no_model(monkeypatch, chars):
    monkeypatch.setattr(serving, "tokenizer_of", lambda args: chars)
    monkeypatch.setattr("hata_sglang.evaluation.server.exit_on_sigterm", lambda: None)


def rows(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


SMALL = ("--tasks", "niah_single_1", "--lengths", "3000", "--samples", "11")


def test_a_running_server_is_graded_and_the_report_made(fake, config, tmp_path, capsys):
    out = tmp_path / "rows.csv"
    run("server", "--url", fake.url, "--arm", "dense", "--out", out, *SMALL)
    assert {row["arm"] for row in rows(out)} == {"dense"}
    fake.be_sparse()
    sparse = ("--url", fake.url, "--arm", "top-k", "--config", config)
    run("server", *sparse, "--out", out, *SMALL)
    last = rows(out)[-1]
    assert [last[key] for key in ("arm", "method", "bits", "budget")] == [
        "top-k",
        "exact",
        "",
        "256",
    ]
    assert len(rows(out)) == 22
    run("report", out, "--out", tmp_path / "report", "--min-dense", "0")
    assert "| top-k |  | 256 | 11 |" in (tmp_path / "report" / "report.md").read_text()


def test_likelihoods_of_a_file(fake, tmp_path):
    text = tmp_path / "mine.txt"
    text.write_bytes(bytes(range(2, 40)) * 3)
    out = tmp_path / "nll.csv"
    where = ("--url", fake.url, "--arm", "dense", "--out", out)
    run("nll", *where, "--text", text, "--chunks", 2, "--context", 20, "--continuation", 5)
    assert [row["chunk"] for row in rows(out)] == ["0", "1"]
    assert all(float(row["nll"]) > 0 for row in rows(out))


def test_every_arm_and_budget_gets_a_server(config, tmp_path, monkeypatch):
    asked = []

    class NoServer:
        client = Client("http://127.0.0.1:1")

        def __init__(self, arguments, on_wait):
            self.arguments = arguments

        def __enter__(self):
            yaml = None
            if "--hata-config" in self.arguments:
                path = self.arguments[self.arguments.index("--hata-config") + 1]
                yaml = HataConfig.load(path)
            asked.append((yaml, self.arguments[-2:]))
            return self

        def __exit__(self, *_):
            asked.append("ended")

    monkeypatch.setattr(serving, "ServerProcess", NoServer)
    args = argparse.Namespace(
        url=None,
        arms=["dense", "exact"],
        budgets=[0.0156, 256],
        model=tmp_path,
        config=config,
        weights=None,
    )
    arms = []
    for client, arm in serving.servers(args, ["--dtype", "float32"], serving.Console(quiet=True)):
        assert isinstance(client, Client)
        arms.append(arm)
    assert arms == [
        Arm("dense"),
        Arm("exact", "exact", "", "0.0156"),
        Arm("exact", "exact", "", "256"),
    ]
    assert asked[1::2] == ["ended"] * 3
    dense, share, fixed = asked[::2]
    assert dense == (None, ["--dtype", "float32"])
    budget = share[0].budget
    assert (budget.ratio, budget.min) == (0.0156, 81)  # sink 16, recent 64, and one to choose
    assert budget.tokens(100_000) == 1560
    assert fixed[0].budget.tokens(100_000) == 256


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--url or --arms: expected one of them"),
        (["--url", "u"], "--arm: expected the name"),
        (["--url", "u", "--arm", "mine"], "--config: expected the YAML of the server"),
        (["--url", "u", "--arm", "dense", "--arms", "dense"], "--arms: expected no --url"),
        (["--url", "u", "--arm", "dense", "--budgets", "64"], "--budgets: expected no --url"),
        (["--arms", "exact"], r"--model: expected (?s:.*)--config: expected"),
        (["--arms", "dense", "--arm", "dense"], "--arm: expected --url beside it"),
    ],
)
def test_unclear_command_lines_are_refused(words, message, tmp_path):
    with pytest.raises(Refusal, match=message):
        run("server", *words, "--out", tmp_path / "rows.csv")


@pytest.mark.parametrize(("text", "value"), [("256", 256), ("0.0156", 0.0156), ("1.0", 1.0)])
def test_budgets(text, value):
    assert read_budget(text) == value


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "0.0", "many", "nan."])
def test_other_budgets_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected tokens"):
        read_budget(text)
