"""``sglang.Engine`` with hata on a CPU, from a script that knows nothing of this package."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from importlib.resources import files

import pytest

from hata_sglang.seams.cpu_preview import ENVIRONMENT, has_cuda_driver

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(has_cuda_driver(), reason="for machines without a GPU"),
]


def test_the_example_script_answers_sparsely(repo_root, demo_model, tmp_path):
    script = repo_root / "launch" / "engine.py"
    assert "import hata" not in script.read_text()
    environment = {k: v for k, v in os.environ.items() if k not in ENVIRONMENT}
    environment["HATA_CONFIG"] = str(files("hata_sglang") / "configs" / "demo.yaml")
    done = subprocess.run(
        [sys.executable, script, demo_model],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer, counters = done.stdout.splitlines()[-2:]
    assert "Paris" in done.stdout, answer
    assert ast.literal_eval(counters)["tokens_encoded"] > 0
