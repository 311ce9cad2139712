"""docs/adding-a-method.md to the letter: a method from outside, trained, judged, served."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hata_sglang.evaluation.server import ServerProcess

pytestmark = pytest.mark.slow
COUNTS = ("decode_steps", "tokens_attended", "tokens_encoded")
#: What makes training and evaluation take seconds; nothing that the document decides.
SMALL = {
    "train": ("--sequence-length", "600", "--minimum-length", "400"),
    "eval": ("--length", "600", "--sequences", "2", "--layers", "5", "--selectors", "streaming"),
}


def blocks(document: str, language: str) -> list[str]:
    """The code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", document, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(repo_root, make_prompt, demo_tokenizer, tmp_path_factory) -> Path:
    """A user's folder: the document's files, and texts."""
    made = tmp_path_factory.mktemp("channels")
    document = (repo_root / "docs" / "adding-a-method.md").read_text("utf-8")
    (made / "channels.py").write_text(blocks(document, "python")[0])
    (made / "pyproject.toml").write_text(blocks(document, "toml")[0])
    (made / "channels.yaml").write_text(blocks(document, "yaml")[0])
    (made / "commands").write_text(blocks(document, "bash")[0])
    for name, seeds in (("texts", range(6)), ("others", range(20, 24))):
        texts = [demo_tokenizer.decode(make_prompt(700, seed)) for seed in seeds]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (made / f"{name}.jsonl").write_text(lines)
    return made


@pytest.fixture(scope="module")
def environment(folder) -> dict[str, str]:
    """Of a user who installed the package."""
    site = folder / "site"
    install = ("install", "--no-deps", "--no-build-isolation", "--no-index", "--target", site)
    command = [sys.executable, "-m", "pip", *install, folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def weights(folder, environment, demo_model) -> Path:
    """What the document's commands make, up to the one that serves."""
    for line in (folder / "commands").read_text().splitlines():
        word, *rest = line.split()
        if word == "hata-sglang":
            rest = [str(demo_model) if part == "MODEL" else part for part in rest]
            command = [sys.executable, "-m", "hata_sglang.cli", *rest, *SMALL[rest[0]]]
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
    return folder / "channels-64b"


def test_its_card_says_what_it_keeps(weights):
    card = json.loads((weights / "card.json").read_text())
    assert (card["method"], card["bits"]) == ("channels", 64)
    masses = card["held_out"][0]["mean"]
    assert masses["streaming"] < masses["channels"] < masses["exact"]


def test_offline_evaluation_judges_it(folder, weights):
    with (folder / "channels.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    # Exact top-k with the mean that this set weighs, beside it.
    expected = {("channels", "64"), ("streaming", ""), ("exact", "")}
    assert {(row["method"], row["bits"]) for row in rows} == expected


def test_a_server_decodes_with_it(folder, weights, environment, demo_model, connect, make_prompt):
    """Sparse, and not what the first and last tokens alone give."""
    arguments = ("--model-path", str(demo_model), "--max-total-tokens", "8000")
    settings = yaml.safe_load((folder / "channels.yaml").read_text())
    assert settings["weights"] == "./channels-64b"  # relative to the file
    with ServerProcess(
        [*arguments, "--hata-config", str(folder / "channels.yaml")],
        log=folder / "server.log",
        env=environment,
    ) as server:
        client = connect(server)
        before = client.counters()
        assert len(client.generate(make_prompt(900, 50), 8)) == 8
        after = client.counters()
    assert (after["method"], after["bits"]) == ("channels", 64)
    steps, attended, encoded = (after[key] - before[key] for key in COUNTS)
    assert steps in (7, 8)  # SGLang may decode a step that nobody waits for
    assert attended == 28 * steps * 256
    assert encoded - 900 in (7, 8)
