"""The recipe of the demo model's weights: its sets can be trained, other names are refused."""

import re
import subprocess

import pytest

from hata_sglang.methods import trainable

GROUP = 3  # of SmolLM2-135M: 9 query heads on 3 KV heads


@pytest.fixture(scope="module")
def script(repo_root):
    return repo_root / "launch" / "train_demo_weights.sh"


def test_every_set_has_a_method_and_its_bits(script):
    names = re.search(r"HATA_DEMO_SETS=\(([^)]*)\)", script.read_text())[1].split()
    assert len(names) == len(set(names)) == 7
    for name in names:
        method, bits = re.fullmatch(r"(\w+)-(\d+)b", name).groups()
        assert trainable(method).resolve_bits(int(bits), GROUP) == int(bits)


def test_an_unknown_set_is_refused_before_anything_is_installed(script, tmp_path):
    environment = {"PATH": "/usr/bin:/bin", "HATA_VENV": str(tmp_path / "venv")}
    found = subprocess.run(
        ["bash", script, "hata-128b", "hata-48b"], env=environment, capture_output=True, text=True
    )
    assert found.returncode == 2
    assert "SET: expected some of hata-32b" in found.stderr
    assert "found hata-48b" in found.stderr
    assert not (tmp_path / "venv").exists()
