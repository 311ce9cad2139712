"""A refusal: exit code 2 and a message under a launcher, an exception for a script's Engine."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hata_sglang.errors import Problem, Refusal
from hata_sglang.seams import cpu_preview, refusing

REFUSAL = Refusal([Problem("--tp-size", "1", "2")])

SCRIPT = """
import sys
import sglang

if __name__ == "__main__":
    try:
        sglang.Engine(model_path=sys.argv[1], attention_backend="hata", device="cpu", tp_size=2)
    except Exception as error:
        print("CAUGHT", type(error).__name__)
        print(error)
"""


def test_a_launcher_exits_with_2_and_the_message(monkeypatch, capsys):
    monkeypatch.setattr(refusing, "_from_command_line", False)
    refusing.note_command_line()
    with pytest.raises(SystemExit) as stop:
        refusing.refuse(REFUSAL)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"{REFUSAL}\n"


def test_a_script_gets_the_error_itself(monkeypatch, capsys):
    monkeypatch.setattr(refusing, "_from_command_line", False)
    with pytest.raises(Refusal) as error:
        refusing.refuse(REFUSAL)
    assert error.value is REFUSAL
    assert capsys.readouterr().err == ""


def test_an_engines_refusal_can_be_caught(tmp_path):
    """It comes through SGLang's own code, which nowhere swallows it."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    # Other tests of this process may have prepared it for a CPU; a user's script begins without.
    own = {k: v for k, v in os.environ.items() if not k.startswith("HATA_")}
    environment = {k: v for k, v in own.items() if k not in cpu_preview.ENVIRONMENT}
    done = subprocess.run(
        [sys.executable, script, tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    caught = done.stdout.split("CAUGHT")[1].splitlines()
    assert caught[0] == " Refusal"
    assert "  - --tp-size: expected 1, found 2" in caught
    assert any("--hata-config (or the environment variable HATA_CONFIG)" in line for line in caught)
    assert "hata cannot run" not in done.stderr
