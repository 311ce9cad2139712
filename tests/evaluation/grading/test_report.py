import csv
import sys

import pytest

from hata_sglang.errors import HataError, Refusal
from hata_sglang.evaluation.report import write_report
from hata_sglang.evaluation.report_data import by_method, read_rows
from hata_sglang.evaluation.report_plots import write_plots

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
    (path,) = write_report([small], tmp_path / "out", plots=False)
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
    (path,) = write_report([small], tmp_path / "out", plots=False)
    assert "dense itself scores below 50: hard at 4096 (10.0)." in path.read_text()
    (path,) = write_report([small], tmp_path / "all", min_dense=0.0, plots=False)
    text = path.read_text()
    assert "Left out" not in text
    assert lines_of(text.split("### hard")[1], "| dense |")[0].startswith("| dense |  |  | 10.0 [")


def test_nothing_left_is_an_error(small, tmp_path):
    with pytest.raises(HataError, match="--min-dense"):
        write_report([small], tmp_path / "out", min_dense=1.1, plots=False)


def test_without_dense_nothing_is_left_out_and_the_report_says_so(tmp_path):
    path = tasks_csv(tmp_path / "t.csv", [EXACT, OURS], {"vt": ([0, 0, 1], [1, 0, 0])})
    (report,) = write_report([path], tmp_path / "out", reference="exact", plots=False)
    text = report.read_text()
    assert "no dense arm to judge tasks by" in text
    assert " ~" in lines_of(text, "| asymmetric |")[0]


def test_arms_with_less_than_all_tasks_are_named(tmp_path):
    whole = tasks_csv(
        tmp_path / "a.csv", [DENSE, OURS], {"vt": ([1, 1], [1, 1]), "cwe": ([1, 1], [1, 0])}
    )
    part = tasks_csv(tmp_path / "b.csv", [EXACT], {"vt": ([1, 1],)})
    (report,) = write_report([whole, part], tmp_path / "out", plots=False)
    text = report.read_text()
    assert "exact 0.0156 lacks 1 of 2 tasks: ('cwe', 4096)" in text
    assert text.count("Not comparable") == 1


def test_the_reference_has_the_same_budget(tmp_path):
    arms = [("exact", "", "64"), ("exact", "", "256"), ("hata", "128", "256")]
    path = tasks_csv(tmp_path / "t.csv", arms, {"vt": ([0, 0], [1, 1], [1, 1])})
    (report,) = write_report([path], tmp_path / "out", reference="exact", plots=False)
    assert "+0.0 [+0.0, +0.0] ~" in lines_of(report.read_text(), "| hata |")[0]


def test_unknown_references_duplicates_and_files_are_errors(small, tmp_path):
    with pytest.raises(HataError, match=r"--reference: expected one of asymmetric, dense, exact"):
        write_report([small], tmp_path / "out", reference="quest", plots=False)
    with pytest.raises(HataError, match="each sample once"):
        write_report([small, small], tmp_path / "out", plots=False)
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
    (report,) = write_report([nll_csv(tmp_path / "n.csv")], tmp_path, plots=False)
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
    (report,) = write_report([offline_csv(tmp_path / "o.csv")], tmp_path, plots=False)
    text = report.read_text()
    for bits, relative in (("128", "0.9000"), ("64", "0.8000")):
        for line in lines_of(text, f"| asymmetric | {bits}"):
            assert f"| 4 | {relative} [{relative}, {relative}] |" in line
    assert "| 0.5000 [0.5000, 0.5000] |" in text


def test_selectors_of_one_method_make_one_line_unless_only_names_tell_them_apart():
    rows = [
        {"selector": name, "method": method, "bits": bits}
        for name, method, bits in (("a", "hata", "64"), ("b", "hata", "128"), ("c", "random", "64"))
    ]
    assert [row["selector"] for row in by_method(rows)] == ["hata", "hata", "random"]
    rows.append({"selector": "d", "method": "hata", "bits": "128"})
    assert [row["selector"] for row in by_method(rows)] == ["a", "b", "random", "d"]


def test_plots(small, tmp_path):
    pytest.importorskip("matplotlib")
    files = [small, nll_csv(tmp_path / "n.csv"), offline_csv(tmp_path / "o.csv")]
    paths = write_report(files, tmp_path / "out")
    names = {path.name for path in paths}
    assert names == {"report.md", "tasks-budget.png", "offline-bits.png"}
    text = paths[0].read_text()
    for path in paths[1:]:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert f"({path.name})" in text


def test_without_matplotlib_the_error_says_what_to_install(small, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)

    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "matplotlib":
                raise ModuleNotFoundError(f"No module named {name!r}", name="matplotlib")

    monkeypatch.setattr(sys, "meta_path", [Blocked(), *sys.meta_path])
    with pytest.raises(Refusal, match=r"package matplotlib: .*hata-sglang\[plot\].*--no-plots"):
        write_plots({}, read_rows([small]), tmp_path)
