"""What a wheel holds, and that it works where the checkout is not."""

from __future__ import annotations

import configparser
import email
import os
import subprocess
import sys
import zipfile

import pytest

import hata_sglang


@pytest.fixture(scope="module")
def names(wheel) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def read(wheel, suffix: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(suffix)]
        return archive.read(name).decode()


def test_top_level_names(names):
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "hata_sglang",
        "hata_kernels",
        "hata_weights",
    }


def test_every_module_of_the_checkout_is_there(names, repo_root):
    for root in (repo_root, repo_root / "kernels", repo_root / "weights"):
        # An editable install leaves hata_sglang.egg-info beside the packages.
        for package in root.glob("hata_*/__init__.py"):
            modules = {str(path.relative_to(root)) for path in package.parent.rglob("*.py")}
            assert modules <= names


def test_data_files_are_there(names, repo_root):
    data = [path for path in (repo_root / "hata_sglang").rglob("*") if path.suffix != ".py"]
    data = {str(path.relative_to(repo_root)) for path in data if path.is_file()}
    data = {name for name in data if "__pycache__" not in name}
    assert "hata_sglang/configs/demo.yaml" in data
    assert data <= names
    weights = repo_root / "weights"
    sets = sorted((weights / "hata_weights").glob("*/card.json"))
    assert sets
    for card in sets:
        folder = card.parent.relative_to(weights)
        assert {f"{folder}/card.json", f"{folder}/hash.safetensors"} <= names


def test_no_rubbish(names):
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests")]


def test_entry_points(wheel):
    parser = configparser.ConfigParser()
    parser.read_string(read(wheel, "/entry_points.txt"))
    assert dict(parser["sglang.srt.plugins"]) == {"hata": "hata_sglang.seams.plugin:register"}
    assert dict(parser["console_scripts"]) == {"hata-sglang": "hata_sglang.cli:main"}


def test_metadata(wheel):
    metadata = email.message_from_string(read(wheel, "/METADATA"))
    assert metadata["Name"] == "hata-sglang"
    assert metadata["Version"] == hata_sglang.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    requires = metadata.get_all("Requires-Dist")
    (sglang,) = [line for line in requires if line.startswith("sglang")]
    assert set(sglang.removeprefix("sglang").split(",")) == {
        ">=0.5.16",
        "<=0.5.23",
        "!=0.5.18",
        "!=0.5.20",
    }
    assert metadata.get_payload().startswith("# ")  # the README


def test_licence_is_included(wheel):
    assert "Apache License" in read(wheel, "LICENSE")


def run_installed(installed, tmp_path, code: str) -> str:
    """Run `code` with the installed wheel first on the path, outside the checkout."""
    # OMP_NUM_THREADS and the like stay; what could name the checkout goes.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HATA_")}
    environment["PYTHONPATH"] = str(installed)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_module_imports(installed, tmp_path):
    code = f"""
import importlib, pkgutil, sys
from hata_sglang.seams import cpu_preview
cpu_preview.enable()  # without a GPU, SGLang's own modules need it
for package in ("hata_sglang", "hata_kernels", "hata_weights"):
    module = importlib.import_module(package)
    assert module.__file__.startswith({str(installed)!r}), module.__file__
    for info in pkgutil.walk_packages(module.__path__, package + "."):
        importlib.import_module(info.name)
        print(info.name)
"""
    imported = run_installed(installed, tmp_path, code).splitlines()
    assert {"hata_sglang.cli", "hata_sglang.seams.plugin", "hata_kernels.score"} <= set(imported)


def test_shipped_config_and_weights_load(installed, tmp_path):
    code = f"""
from importlib.resources import files
import hata_sglang.weights, hata_weights
from hata_sglang.config import HataConfig
assert hata_sglang.weights.__file__.startswith({str(installed)!r})
config = HataConfig.load(str(files("hata_sglang") / "configs" / "demo.yaml"))
plans = config.resolve(30, 8192)
weights = hata_sglang.weights.load_weights(config.weights)
assert all(plan.dense or plan.layer in weights.layers for plan in plans)
print(config.weights in hata_sglang.weights.shipped_weights())
"""
    assert run_installed(installed, tmp_path, code) == "True\n"


def test_entry_points_resolve(installed, tmp_path):
    code = f"""
from importlib.metadata import Distribution
(found,) = Distribution.discover(name="hata-sglang", path=[{str(installed)!r}])
for point in found.entry_points:
    function = point.load()
    print(point.group, callable(function))
"""
    output = run_installed(installed, tmp_path, code).splitlines()
    assert sorted(output) == ["console_scripts True", "sglang.srt.plugins True"]


def test_console_script_runs(installed, tmp_path):
    code = "import sys; from hata_sglang.cli import main; sys.exit(main(['weights']))"
    assert "attention mass kept" in run_installed(installed, tmp_path, code)
