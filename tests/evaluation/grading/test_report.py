import csv

import pytest

from hata_sglang.errors import HataError, Refusal
from hata_sglang.evaluation.report import write_report
from hata_sglang.evaluation.report_data import read_rows

TASK_COLUMNS = ("arm", "bits", "budget", "task", "length", "index", "depth", "score", "seed")


def write(path, columns, rows):
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


def tasks_csv(path, arms, tasks):
    """`tasks`: name -> (scores per arm); every arm on the same samples."""
    rows = [
        [*arm, task, 4096, n, n / 10, score, 0, f"{task}{n}"]
        for task, scores in tasks.items()
        for arm, own in zip(arms, scores, strict=True)
        for n, score in enumerate(own)
    ]
    return write(path, (*TASK_COLUMNS, "sample"), rows)


DENSE = ("dense", "", "")
EXACT = ("exact", "", "0.0156")
OURS = ("asymmetric", "128", "0.0156")


@pytest.fixture
def small(tmp_path):
    worse = [0, 0, 0, 0, 0, 0, 1, 1, 1, 1]
    return tasks_csv(
        tmp_path / "tasks.csv",
        [DENSE, EXACT, OURS],
        {
            "needle": ([1] * 10, [1] * 10, worse),
            "vt": ([1] * 9 + [0], [1] * 9 + [0], [1] * 8 + [0, 1]),
            "hard": ([0] * 9 + [1], [1] * 10, [1] * 10),
        },
    )


def lines_of(text, start):
    return [line for line in text.splitlines() if line.startswith(start)]


def test_averages_intervals_and_differences(small, tmp_path):
    path = write_report([small], tmp_path / "out")
    text = path.read_text()
    dense = lines_of(text, "| dense |")[0].split(" | ")
    assert dense[3:5] == ["20", "95.0 [85.0, 100.0]"]
    assert dense[5].strip(" |") == ""  # not less itself
    exact = lines_of(text, "| exact |")[0]
    assert "+0.0 [+0.0, +0.0] ~" in exact
    ours = lines_of(text, "| asymmetric |")[0]
    cells = [cell.strip() for cell in ours.strip("|").split("|")]
    assert cells[:4] == ["asymmetric", "128", "0.0156", "20"]
    assert cells[4].startswith("65.0 [")
    # -60 points on needle, 0 on vt (one lost, one won); the interval is below zero, so no mark.
    assert cells[5] == "-30.0 [-50.0, -10.0]"
    assert cells[5] == cells[6]  # exact scored as dense did
    assert "`~` marks" in text


def test_tasks_that_dense_cannot_do_are_left_out_and_named(small, tmp_path):
    path = write_report([small], tmp_path / "out")
    assert "dense itself scores below 50: hard at 4096 (10.0)." in path.read_text()
    path = write_report([small], tmp_path / "all", min_dense=0.0)
    text = path.read_text()
    assert "Left out" not in text
    assert lines_of(text.split("### hard")[1], "| dense |")[0].startswith("| dense |  |  | 10.0 [")


def test_nothing_left_is_an_error(small, tmp_path):
    with pytest.raises(HataError, match="--min-dense"):
        write_report([small], tmp_path / "out", min_dense=1.1)


def test_without_dense_nothing_is_left_out_and_the_report_says_so(tmp_path):
    path = tasks_csv(tmp_path / "t.csv", [EXACT, OURS], {"vt": ([0, 0, 1], [1, 0, 0])})
    report = write_report([path], tmp_path / "out")
    text = report.read_text()
    assert "no dense arm to judge tasks by" in text
    assert " ~" in lines_of(text, "| asymmetric |")[0]


def test_arms_with_less_than_all_tasks_are_named(tmp_path):
    whole = tasks_csv(
        tmp_path / "a.csv", [DENSE, OURS], {"vt": ([1, 1], [1, 1]), "cwe": ([1, 1], [1, 0])}
    )
    part = tasks_csv(tmp_path / "b.csv", [EXACT], {"vt": ([1, 1],)})
    report = write_report([whole, part], tmp_path / "out")
    text = report.read_text()
    assert "exact 0.0156 lacks 1 of 2 tasks: ('cwe', 4096)" in text
    assert text.count("Not comparable") == 1


def test_the_reference_has_the_same_budget(tmp_path):
    arms = [("exact", "", "64"), ("exact", "", "256"), ("hata", "128", "256")]
    path = tasks_csv(tmp_path / "t.csv", arms, {"vt": ([0, 0], [1, 1], [1, 1])})
    report = write_report([path], tmp_path / "out")
    assert "+0.0 [+0.0, +0.0] ~" in lines_of(report.read_text(), "| hata |")[0]


def test_duplicates_other_files_and_other_values_are_errors(small, tmp_path):
    with pytest.raises(HataError, match=r"each sample once, found twice: \{'arm': 'dense'"):
        write_report([small, small], tmp_path / "out")
    no_number = [*DENSE, "vt", 4096, 0, 0, "x", 0, "vt0"]
    text = write(tmp_path / "text.csv", (*TASK_COLUMNS, "sample"), [no_number])
    with pytest.raises(HataError, match=r"columns score: expected numbers, found: .*'x'"):
        write_report([text], tmp_path / "out")
    with pytest.raises(HataError, match="expected at least one row"):
        write_report([write(tmp_path / "no_rows.csv", (*TASK_COLUMNS, "sample"), [])], tmp_path)
    other = write(tmp_path / "other.csv", ("a", "b"), [])
    with pytest.raises(Refusal, match=r"2 problems(?s:.*)found a, b(?s:.*)none\.csv"):
        read_rows([other, tmp_path / "none.csv"])


def nll_csv(path):
    columns = ("arm", "bits", "budget", "text", "chunk", "context", "continuation", "nll", "sample")
    rows = [
        [*arm, "novel", n, 6000, 1000, nll + n, f"s{n}"]
        for arm, nll in ((DENSE, 2.0), (OURS, 2.5))
        for n in range(4)
    ]
    return write(path, columns, rows)


def test_likelihoods(tmp_path):
    report = write_report([nll_csv(tmp_path / "n.csv")], tmp_path)
    (ours,) = lines_of(report.read_text(), "| asymmetric |")
    assert "| 4.0000 [" in ours
    assert "+0.5000 [+0.5000, +0.5000] |" in ours


OFFLINE = (
    *("model", "layer", "dense", "head", "selector", "method", "bits", "budget", "length"),
    *("mass", "relative_mass", "recall", "output_error"),
)


def offline_csv(path):
    rows = [
        # What a dense layer keeps is not part of any average.
        [
            *("m", layer, int(layer == 0), head, selector, selector, bits, budget, 6000, mass),
            *(0.1 if layer == 0 else mass / (0.9 * scale), 0.5, 0.1),
        ]
        for layer in (0, 2, 3)
        for head in (0, 1)
        for budget, scale in (("0.0156", 0.8), ("0.0625", 1.0))
        for selector, bits, mass in (
            ("exact", "", 0.9 * scale),
            ("asymmetric", "128", 0.81 * scale),
            ("asymmetric", "64", 0.72 * scale),
        )
    ]
    return write(path, OFFLINE, rows)


def test_offline_averages_are_of_the_sparse_layers(tmp_path):
    report = write_report([offline_csv(tmp_path / "o.csv")], tmp_path)
    text = report.read_text()
    for bits, relative in (("128", "0.9000"), ("64", "0.8000")):
        for line in lines_of(text, f"| asymmetric | {bits}"):
            assert f"| 4 | {relative} [{relative}, {relative}] |" in line
    assert "| 0.5000 [0.5000, 0.5000] |" in text
