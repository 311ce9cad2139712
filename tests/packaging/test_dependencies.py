"""The declared dependencies are what the package imports: none missing, none for nothing."""

import ast
import re
import sys
from importlib.metadata import packages_distributions, requires

import pytest

OURS = {"hata_sglang", "hata_kernels", "hata_weights"}
# Compiled parts that SGLang's own wheels bring along with it.
WITH_SGLANG = {"sglang_kernel"}
# Not imported here: transformers needs them to read the demo model's GGUF file.
FOR_TRANSFORMERS = {"accelerate", "gguf"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name).lower()


@pytest.fixture(scope="module")
def declared() -> set[str]:
    """Distributions that the package needs."""
    lines = [line for line in requires("hata-sglang") if "extra ==" not in line]
    return {normal(re.match(r"[\w.-]+", line)[0]) for line in lines}


@pytest.fixture(scope="module")
def imported(repo_root) -> dict[str, set[str]]:
    """Top-level module of somebody else -> our files that import it."""
    found: dict[str, set[str]] = {}
    for root in (repo_root, repo_root / "kernels", repo_root / "weights"):
        for path in (path for package in root.glob("hata_*") for path in package.rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    names = [node.module]
                for top in {name.split(".")[0] for name in names} - OURS:
                    if top not in sys.stdlib_module_names:
                        found.setdefault(top, set()).add(str(path.relative_to(repo_root)))
    return found


def test_every_import_is_declared(imported, declared):
    providers = packages_distributions()
    missing = {
        top: sorted(paths)
        for top, paths in imported.items()
        if not {normal(name) for name in providers.get(top, [top])} & (declared | WITH_SGLANG)
    }
    assert missing == {}


def test_every_declared_dependency_is_used(imported, declared):
    providers = packages_distributions()
    used = {normal(name) for top in imported for name in providers.get(top, [])}
    assert declared - used == FOR_TRANSFORMERS
