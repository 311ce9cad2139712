"""What ``python -m hata_sglang.launch_server`` adds to the user's command line."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import yaml

from hata_sglang.config import HataConfig
from hata_sglang.demo import model as demo_model
from hata_sglang.errors import Refusal
from hata_sglang.seams import cpu_preview, launch, refusing
from hata_sglang.seams.launch import complete_arguments


@pytest.fixture(autouse=True)
def demo(monkeypatch):
    monkeypatch.delenv("HATA_CONFIG", raising=False)
    monkeypatch.setattr(demo_model, "ensure_demo_model", lambda: Path("demo-folder"))


def pairs(argv):
    return dict(zip(argv[::2], argv[1::2], strict=True))


def test_nothing_given_on_a_cpu():
    argv, notes = complete_arguments([], on_cpu=True)
    flags = pairs(argv)
    assert flags["--device"] == "cpu"
    assert flags["--attention-backend"] == "hata"
    assert flags["--model-path"] == "demo-folder"
    assert Path(flags["--hata-config"]).name == "demo.yaml"
    assert int(flags["--max-total-tokens"]) >= 8192
    assert flags["--grammar-backend"] == "llguidance"
    assert len(notes) == len(flags)  # every choice is explained
    assert "no CUDA device found" in notes[0]


def test_nothing_given_on_a_gpu():
    flags = pairs(complete_arguments([], on_cpu=False)[0])
    assert set(flags) == {"--attention-backend", "--model-path", "--hata-config"}


def test_what_is_given_stays():
    given = [
        "--model-path",
        "mine",
        "--attention-backend=torch_native",
        "--device",
        "cpu",
        "--mem-fraction-static",
        "0.5",
        "--grammar-backend",
        "outlines",
    ]
    argv, notes = complete_arguments(given, on_cpu=True)
    assert argv == given
    assert notes == ["not used: another attention backend was asked for"]


@pytest.mark.parametrize(
    ("settings", "added"),
    [
        ({"model-path": "mine"}, {"--attention-backend": "hata"}),
        ({"model_path": "mine", "attention_backend": "hata", "hata-config": "my.yaml"}, {}),
        (
            {"hata-config": "my.yaml", "decode-attention-backend": "hata"},
            {"--model-path": "demo-folder"},
        ),
        ("not a mapping: [", {"--attention-backend": "hata", "--model-path": "demo-folder"}),
    ],
    ids=["nothing", "all", "no-model", "broken"],
)
def test_what_a_file_of_flags_gives_stays(tmp_path, settings, added):
    file = tmp_path / "flags.yaml"
    file.write_text(settings if isinstance(settings, str) else yaml.safe_dump(settings))
    argv, notes = complete_arguments(["--config", str(file)], on_cpu=False)
    assert argv[:2] == ["--config", str(file)]
    flags = pairs(argv[2:])
    if not isinstance(settings, str) or "--hata-config" not in settings:
        flags.pop("--hata-config", None)
    assert flags == added
    assert not any(note.startswith("not used") for note in notes)


def test_a_file_that_names_another_backend_is_said_so(tmp_path):
    file = tmp_path / "flags.yaml"
    file.write_text("attention-backend: triton\nmodel-path: mine\n")
    argv, notes = complete_arguments(["--config", str(file)], on_cpu=False)
    assert argv == ["--config", str(file)]
    assert notes == ["not used: another attention backend was asked for"]


def test_sglang_without_the_plugin_is_said_so(monkeypatch):
    from hata_sglang.seams.launch import require_plugin

    cpu_preview.enable()
    from sglang.srt import server_args

    monkeypatch.setattr(server_args, "ATTENTION_BACKEND_CHOICES", ["triton", "hata"])
    require_plugin()
    monkeypatch.setattr(server_args, "ATTENTION_BACKEND_CHOICES", ["triton"])
    monkeypatch.setenv("SGLANG_PLUGINS", "other")
    line = "environment variable SGLANG_PLUGINS: expected none, or hata in it, found other"
    with pytest.raises(Refusal, match=line):
        require_plugin()


def test_a_method_that_cannot_be_loaded_is_named(monkeypatch):
    """It keeps SGLang from loading the whole plugin."""
    cpu_preview.enable()
    from sglang.srt import server_args

    def broken():
        raise Refusal.of("entry point theirs", "a hata_sglang.methods.Method", "ImportError")

    monkeypatch.setattr(server_args, "ATTENTION_BACKEND_CHOICES", ["triton"])
    monkeypatch.setattr("hata_sglang.methods.methods", broken)
    with pytest.raises(Refusal, match=r"entry point theirs: expected a hata_sglang\.methods"):
        launch.require_plugin()


def test_a_launch_that_is_refused_ends_with_code_2(monkeypatch, capsys):
    def refuse(argv, *, on_cpu):
        raise Refusal.of("--model-path", "a folder", "none")

    monkeypatch.setattr(launch, "complete_arguments", refuse)
    monkeypatch.setattr(refusing, "_from_command_line", False)
    with pytest.raises(SystemExit) as stop:
        launch.main()
    assert stop.value.code == 2
    assert "--model-path: expected a folder, found none" in capsys.readouterr().err


def test_another_model_gets_settings_that_fit_any():
    argv, notes = complete_arguments(["--model-path", "mine"], on_cpu=False)
    flags = pairs(argv)
    assert set(flags) == {"--model-path", "--attention-backend", "--hata-config"}
    config = HataConfig.load(flags["--hata-config"])
    assert {plan.weights for plan in config.resolve(32, 131072) if not plan.dense} == {"auto"}
    assert any("no YAML named: method asymmetric, bits 128, weights auto" in note for note in notes)


def test_another_backend_gets_no_settings():
    argv, _ = complete_arguments(
        ["--model-path", "mine", "--attention-backend", "fa3"], on_cpu=False
    )
    assert "--hata-config" not in argv


def test_own_config_with_the_demo_model(monkeypatch):
    flags = pairs(complete_arguments(["--hata-config", "my.yaml"], on_cpu=False)[0])
    assert flags["--hata-config"] == "my.yaml"
    monkeypatch.setenv("HATA_CONFIG", "env.yaml")
    assert "--hata-config" not in pairs(complete_arguments([], on_cpu=False)[0])


@pytest.mark.parametrize("flag", ["--help", "-h", "--version"])
def test_help_is_sglangs(flag):
    assert complete_arguments([flag], on_cpu=True) == ([flag], [])


def test_the_preview_is_for_machines_without_a_driver(monkeypatch):
    monkeypatch.setattr(cpu_preview, "has_cuda_driver", lambda: True)
    path = [folder for folder in sys.path if folder != cpu_preview.PLACEHOLDER_FOLDER]
    monkeypatch.setattr(sys, "path", path)
    environment = {k: v for k, v in os.environ.items() if k not in cpu_preview.ENVIRONMENT}
    monkeypatch.setattr(os, "environ", environment)
    assert cpu_preview.enable() is False
    assert sys.path == path
    assert not environment.keys() & cpu_preview.ENVIRONMENT.keys()
    monkeypatch.setattr(cpu_preview, "has_cuda_driver", lambda: False)
    environment["TORCH_COMPILE_DISABLE"] = "0"
    assert cpu_preview.enable() is True
    assert cpu_preview.enable() is True
    assert sys.path.count(cpu_preview.PLACEHOLDER_FOLDER) == 1
    assert (Path(cpu_preview.PLACEHOLDER_FOLDER) / "common_ops.py").is_file()
    assert environment["SGLANG_USE_CPU_ENGINE"] == "1"
    assert environment["TORCH_COMPILE_DISABLE"] == "0"  # the user's choice
