import argparse
import csv
from contextlib import contextmanager
from pathlib import Path

import pytest

from hata_sglang.config import HataConfig
from hata_sglang.errors import Refusal
from hata_sglang.evaluation import serving
from hata_sglang.evaluation.budgets import read_budget
from hata_sglang.evaluation.cli import add_eval_arguments
from hata_sglang.evaluation.client import Client
from hata_sglang.evaluation.sparsity import Arm
from hata_sglang.evaluation.tasks import TASKS, Task

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
def no_model(monkeypatch, fake, chars):
    """The fake server in place of those that are started, and its tokenizer."""

    @contextmanager
    def started(arm, model, config, flags, console, weights, budget):
        if arm != "dense":
            fake.be_sparse()
        folder = config.parent if config else None
        yield Client(fake.url), serving.arm_flags(arm, config, folder, weights, budget)[0]

    monkeypatch.setattr(serving, "started", started)
    monkeypatch.setattr("hata_sglang.training.checkpoint.load_tokenizer", lambda model: chars)
    monkeypatch.setattr("hata_sglang.evaluation.server.exit_on_sigterm", lambda: None)


def rows(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


SMALL = ("--tasks", "niah_single_1", "--lengths", "3000", "--samples", "11")


def test_arms_are_graded_and_the_report_made(config, tmp_path, capsys):
    out = tmp_path / "rows.csv"
    where = ("--model", "m", "--config", config, "--budgets", "0.5", "256", "--out", out)
    run("server", *where, "--arms", "dense", "exact", *SMALL)
    found = [tuple(row[key] for key in ("arm", "method", "bits", "budget")) for row in rows(out)]
    assert found == [
        *[("dense", "dense", "", "")] * 11,
        *[("exact", "exact", "", "0.5")] * 11,
        *[("exact", "exact", "", "256")] * 11,
    ]
    run("report", out, "--out", tmp_path / "report", "--min-dense", "0")
    assert "| exact |  | 256 | 11 |" in (tmp_path / "report" / "report.md").read_text()


def test_ruler_stands_for_all_tasks_each_once(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(Task, "samples", lambda self, *_: asked.append(self.name) or [])
    where = ("--model", "m", "--arms", "dense", "--out", tmp_path / "rows.csv")
    run("server", *where, "--tasks", "vt", "ruler", "vt")
    assert asked == ["vt", *(name for name in TASKS if name != "vt")]
    assert len(TASKS) == 11
    with pytest.raises(SystemExit):
        run("server", *where, "--tasks", "other")
    assert "invalid choice: 'other' (choose from" in capsys.readouterr().err


def test_likelihoods_of_files_at_two_contexts(tmp_path):
    texts = [tmp_path / "mine.txt", tmp_path / "yours.txt"]
    for text in texts:
        text.write_bytes(bytes(range(2, 40)) * 3)
    out = tmp_path / "nll.csv"
    where = ("--model", "m", "--arms", "dense", "--out", out, "--text", *texts)
    run("nll", *where, "--chunks", 2, "--context", 20, 30, "--continuation", 5)
    assert [(row["text"], row["context"], row["chunk"]) for row in rows(out)] == [
        (text, context, chunk)
        for context in ("20", "30")
        for text in ("mine", "yours")
        for chunk in "01"
    ]
    assert all(float(row["nll"]) > 0 for row in rows(out))


def test_a_model_without_a_tokenizer_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("hata_sglang.training.checkpoint.load_tokenizer", lambda model: None)
    with pytest.raises(Refusal, match="--model: expected a folder with a tokenizer, found m"):
        run("server", "--model", "m", "--arms", "dense", "--out", tmp_path / "rows.csv")


def test_sparse_arms_without_a_file_are_refused_before_a_server_starts(tmp_path, fake):
    out = tmp_path / "rows.csv"
    with pytest.raises(Refusal, match="--config: expected a YAML file for the sparse arms"):
        run("server", "--model", "m", "--arms", "dense", "exact", "--out", out, *SMALL)
    assert fake.requests == []
    assert not out.exists()


def test_an_arm_gets_a_server_of_its_own(config, tmp_path, monkeypatch):
    asked = []

    class NoServer:
        client = Client("http://127.0.0.1:1")

        def __init__(self, arguments, module, on_wait):
            assert module == "hata_sglang.launch_server"
            self.arguments = arguments

        def __enter__(self):
            asked.append(HataConfig.load(Path(self.arguments[3])))
            return self

        def __exit__(self, *_):
            asked.append("ended")

    monkeypatch.undo()
    monkeypatch.setattr(serving, "ServerProcess", NoServer)
    flags, console = ["--dtype", "float32"], serving.Console(quiet=True)
    with serving.started("exact", tmp_path, config, flags, console, budget=300) as (client, arm):
        assert isinstance(client, Client)
        assert arm == Arm("exact", "exact", "", "300")
    assert [asked[0].budget.tokens(100_000), asked[1]] == [300, "ended"]


@pytest.mark.parametrize(("text", "value"), [("256", 256), ("0.0156", 0.0156), ("1.0", 1.0)])
def test_budgets(text, value):
    assert read_budget(text) == value


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "0.0", "many", "nan."])
def test_other_budgets_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected tokens"):
        read_budget(text)
