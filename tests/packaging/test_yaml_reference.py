"""docs/yaml.md says what the schema says, and knows every variable that the code reads."""

import re

import yaml_reference


def test_the_tables_are_those_of_the_schema():
    text = yaml_reference.DOCUMENT.read_text("utf-8")
    assert all(yaml_reference.BEGIN.format(name) in text for name in yaml_reference.TABLES)
    assert text == yaml_reference.in_document(text), (
        "python tests/support/yaml_reference.py makes them"
    )


def test_every_variable_is_listed(repo_root):
    files = [*(repo_root / "launch").glob("*.sh")]
    files += (repo_root / "hata_sglang").rglob("*.py")
    files += [repo_root / "tests/kernels/conftest.py", repo_root / "tests/gpu/conftest.py"]
    pattern = r"""(?:environ(?:\.get)?[(\[]"|_ENV = "|\$\{|^#   )(HATA_[A-Z_]+)"""
    read = set()
    for path in files:
        read |= set(re.findall(pattern, path.read_text("utf-8"), flags=re.MULTILINE))
    assert {"HATA_CONFIG", "HATA_CACHE", "HATA_SERVERS", "HATA_VENV"} <= read
    local = {"HATA_ROOT", "HATA_PYTHONS", "HATA_DISK_GB", "HATA_PYTHON_FOUND", "HATA_DEMO_SETS"}
    listed = set(re.findall(r"HATA_[A-Z_]+", yaml_reference.DOCUMENT.read_text("utf-8")))
    assert read - local == listed
