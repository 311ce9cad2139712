"""What the README says works is what docs/validation.csv says ran, and nothing else."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import validation

ORIGIN = {
    "date": "2026-12-01",
    "commit": "abc1234",
    "device": "NVIDIA H200",
    "sglang": "0.5.16",
    "torch": "2.11.0",
    "command": "pytest -m gpu",
}
COVERING = "tests/gpu/test_servers.py::test_covering_budget_gives_what_stock_gives"
FEATURE = validation.feature_of(COVERING)


def test_the_readme_has_the_table_of_the_rows():
    text = validation.README.read_text("utf-8")
    assert validation.BEGIN in text
    assert text == validation.in_readme(text, validation.read_rows()), (
        "python tests/support/validation.py makes it"
    )


def test_committed_rows_are_of_features_and_commits():
    rows = validation.read_rows()
    assert {row["feature"] for row in rows} <= {feature.name for feature in validation.FEATURES}
    for row in rows:
        assert all(row[column] for column in validation.COLUMNS if column != "inner"), row
        assert not row["commit"].endswith("+"), f"{row['feature']}: files were changed"


def test_every_feature_has_tests(repo_root):
    for feature in validation.FEATURES:
        for beginning in feature.tests:
            path, _, name = beginning.partition("::")
            found = list(repo_root.glob(f"{path}*"))
            assert found, beginning
            assert not name or f"def {name}" in found[0].read_text("utf-8"), beginning


def test_the_longest_beginning_decides():
    assert validation.feature_of("tests/plugin/test_decoders.py::test_x").startswith("decoders")
    assert validation.feature_of("tests/plugin/test_pool.py::test_x").startswith("what is refused")
    assert validation.feature_of("tests/packaging/test_validation.py::test_x") is None


def test_rows_of_a_run():
    outcomes = [
        (f"{COVERING}[fa3]", "fa3", "passed", 60.2),
        (f"{COVERING}[fa3]-again", "fa3", "failed", 1.0),
        (f"{COVERING}[triton]", "triton", "passed", 50.0),
        ("tests/packaging/test_docs.py::test_x", "", "failed", 1.0),
    ]
    fa3, triton = validation.rows_of(outcomes, ORIGIN)
    assert (fa3["inner"], fa3["result"], fa3["tests"], fa3["seconds"]) == (
        "fa3",
        "1 failed",
        "2",
        "61",
    )
    assert (triton["result"], triton["commit"]) == ("passed", "abc1234")
    assert fa3["feature"] == triton["feature"] == FEATURE


def test_a_newer_run_replaces_the_row_of_its_key(tmp_path):
    file = tmp_path / "rows.csv"
    first = validation.rows_of(
        [(COVERING, inner, "failed", 1) for inner in ("fa3", "triton")], ORIGIN
    )
    validation.write_rows(first, file)
    newer = validation.rows_of([(COVERING, "fa3", "passed", 1)], ORIGIN | {"commit": "def5678"})
    validation.write_rows(newer, file)
    rows = validation.read_rows(file)
    assert [(r["inner"], r["result"], r["commit"]) for r in rows] == [
        ("fa3", "passed", "def5678"),
        ("triton", "1 failed", "abc1234"),
    ]


def test_the_table_says_what_was_not_run():
    inners = [("fa3", "passed"), ("flashinfer", "failed"), ("triton", "passed")]
    gpu = validation.rows_of([(COVERING, *each, 1) for each in inners], ORIGIN)
    older = validation.rows_of(
        [("tests/gpu/test_servers.py::test_method_in_a_server[hata]", "", "passed", 1)],
        ORIGIN | {"commit": "def5678"},
    )
    cpu = validation.rows_of(
        [("tests/kernels/test_rank.py::test_x", "", "passed", 1)],
        ORIGIN | {"device": "Intel, 2 cores"},
    )
    head, _, *lines = validation.table(gpu + older + cpu).splitlines()
    places = "CPU, SGLang 0.5.16 (abc1234) | NVIDIA H200, SGLang 0.5.16 (abc1234)"
    assert head == f"| | {places} |"
    assert f"| {FEATURE} | not run | fa3, triton: passed, flashinfer: 1 failed |" in lines
    assert "| every method in a server | not run | passed (def5678) |" in lines
    assert lines[0].endswith("| passed | not run |")
    assert len(lines) == len(validation.FEATURES)


def report(nodeid: str, when: str, outcome: str, inner: str = ""):
    return SimpleNamespace(
        nodeid=nodeid,
        when=when,
        outcome=outcome,
        passed=outcome == "passed",
        failed=outcome == "failed",
        skipped=outcome == "skipped",
        duration=1.0,
        user_properties=[("inner", inner)] if inner else [],
    )


@pytest.mark.parametrize("worker", [False, True])
def test_a_run_is_recorded(tmp_path, worker):
    file = tmp_path / "rows.csv"
    recorder = validation.Recorder(file)
    for each in (
        report(f"{COVERING}[fa3]", "setup", "passed"),
        report(f"{COVERING}[fa3]", "call", "passed", "fa3"),
        report(f"{COVERING}[fa3]", "teardown", "failed", "fa3"),  # a server that does not end
        report(f"{COVERING}[triton]", "setup", "failed"),
        report("tests/kernels/test_rank.py::test_x", "setup", "skipped"),
    ):
        recorder.pytest_runtest_logreport(each)
    config = SimpleNamespace(invocation_params=SimpleNamespace(args=("-m", "gpu")))
    if worker:
        config.workerinput = {}
    recorder.pytest_sessionfinish(SimpleNamespace(config=config))
    if worker:
        assert not file.exists()
        return
    rows = {row["inner"]: row for row in validation.read_rows(file)}
    assert {inner: row["result"] for inner, row in rows.items()} == {
        "fa3": "1 failed",
        "": "1 failed",
    }
    assert rows["fa3"]["command"] == "pytest -m gpu"
    assert set(rows["fa3"]) == set(validation.COLUMNS)
