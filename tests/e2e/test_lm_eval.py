"""lm-evaluation-harness against a sparse server, on the task that docs/evaluation.md shows."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from hata_sglang.evaluation.arms import demo_config
from hata_sglang.evaluation.sparsity import reading

pytestmark = pytest.mark.slow

QUESTIONS = 8
#: Of a document of about 700 tokens; the demo's 256 would be no small part of it.
BUDGET = 128


@pytest.fixture(scope="module")
def server(start):
    yaml = demo_config().read_text(encoding="utf-8").replace("budget: 256", f"budget: {BUDGET}")
    assert f"budget: {BUDGET}" in yaml
    with start(yaml) as server:
        yield server


def test_the_harness_grades_a_sparse_server(server, demo_model, repo_root, tmp_path):
    settings = {
        "model": "default",
        "base_url": f"{server.base_url}/v1/completions",
        "tokenizer": demo_model,
        "max_length": 8192,
    }
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions"]
    command += ["--model_args", ",".join(f"{key}={value}" for key, value in settings.items())]
    command += ["--apply_chat_template", "--include_path", "launch/examples/lm_eval"]
    command += ["--tasks", "hidden_facts", "--output_path", str(tmp_path)]
    before = server.client.counters()
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.rglob("results_*.json")
    results = json.loads(path.read_text(encoding="utf-8"))
    scores = results["results"]["hidden_facts"]
    assert scores["sample_len"] == QUESTIONS
    assert scores["exact_match,number"] >= 6 / QUESTIONS
    read = reading(before, server.client.counters())
    assert read.steps >= 5 * QUESTIONS  # digits of the numbers
    assert read.attended <= BUDGET
    assert read.context > 600
