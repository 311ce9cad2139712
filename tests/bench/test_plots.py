"""Plots out of small CSV files: which files, and what lines they have."""

import csv
import sys

import pytest

from hata_sglang import cli
from hata_sglang.bench.plots_op import layer_lines, panels
from hata_sglang.bench.plots_serve import middle

pytest.importorskip("matplotlib")
PNG = b"\x89PNG"


def rows_of(path):
    with path.open() as stream:
        return list(csv.DictReader(stream))


def test_files_of_op(op_csv, tmp_path, capsys):
    out = tmp_path / "plots"
    assert cli.main(["bench", "plot", str(op_csv), "--out", str(out)]) == 0
    names = {path.name for path in out.iterdir()}
    assert names == {f"op-Llama-3.1-8B-{x}.png" for x in ("context", "batch", "k", "stages")}
    assert all(path.read_bytes().startswith(PNG) for path in out.iterdir())
    assert {line.rpartition("/")[2] for line in capsys.readouterr().out.splitlines()} == names


def test_files_of_serve(serve_csv, op_csv, tmp_path):
    out = tmp_path / "plots"
    assert cli.main(["bench", "plot", str(serve_csv), str(op_csv), "--out", str(out)]) == 0
    names = {path.name for path in out.iterdir()}
    # Another device than the rows of op, which are of this machine: prefixes are per command.
    assert {"serve-Llama.png", "serve-Llama-users.png"} <= names
    assert "serve-Llama-prompt_tokens.png" not in names  # every workload has one length


def test_lines_against_context(op_csv):
    rows = rows_of(op_csv)
    # 1/16 and 1/4, 1/128 and 1/32: no share has two contexts.
    assert panels(rows, "context") == [
        {"batch": batch, "k": k} for batch in (1, 16) for k in (512, 2048)
    ]
    lines = layer_lines(rows, "context", {"batch": 16, "k": 512})
    assert set(lines) == {"hata 128", "exact", "dense"}
    assert set(lines["dense"]) == {8192, 65536}
    middle_us, low, high = lines["dense"][65536]
    assert low < middle_us < high
    assert lines["hata 128"][65536][0] < middle_us


def test_budgets_that_are_a_share(op_csv):
    rows = [row for row in rows_of(op_csv) if row["k"] in ("", "512", "2048")]
    for row in rows:
        if row["k"] == "2048" and row["context"] == "65536":
            row["k"] = "4096"  # 1/16, as 512 of 8,192
    share = {"batch": 1, "context / k": 16}
    assert share in panels(rows, "context")
    lines = layer_lines(rows, "context", share)
    assert {label: set(line) for label, line in lines.items()} == {
        label: {8192, 65536} for label in ("hata 128", "exact", "dense")
    }


def test_shorter_lines_are_left_out():
    places = [(8192, 128), (16384, 256), (32768, 512), (16384, 512)]
    rows = [
        {"stage": "layer", "p50_us": "9", "batch": "1", "context": str(context), "k": str(k)}
        for context, k in places
    ]
    # Three contexts have 1/64 of them as the budget, two of them 512.
    assert panels(rows, "context") == [{"batch": 1, "context / k": 64}]


def test_dense_is_the_same_at_every_k(op_csv):
    lines = layer_lines(rows_of(op_csv), "k", {"batch": 1, "context": 8192})
    assert set(lines["dense"]) == {512, 2048}
    assert len(set(lines["dense"].values())) == 1


def test_rows_that_were_not_timed_are_no_points(op_csv):
    rows = rows_of(op_csv)
    for row in rows:
        if row["stage"] == "layer" and row["k"] == "2048":
            row["p50_us"] = ""
    assert all(place["k"] == 512 for place in panels(rows, "context"))
    assert panels(rows, "k") == []


def test_median_over_repeats(serve_csv):
    rows = [r for r in rows_of(serve_csv) if r["arm"] == "hata" and r["workload"] == "one"]
    assert middle(rows, "decode_tokens_per_s") == 101.5
    assert middle([], "decode_tokens_per_s") is None


def test_other_files_are_refused(tmp_path, capsys):
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    argv = ["bench", "plot", str(other), "--out", str(tmp_path / "plots")]
    assert cli.main(argv) == 2
    assert "expected columns of `bench op`" in capsys.readouterr().err
    assert not (tmp_path / "plots").exists()
    assert cli.main(["bench", "plot", "none.csv", "--out", "x"]) == 2
    assert "none.csv: no such file" in capsys.readouterr().err


def test_without_matplotlib_the_error_says_what_to_install(op_csv, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not there
    out = tmp_path / "plots"
    assert cli.main(["bench", "plot", str(op_csv), "--out", str(out)]) == 2
    # The command is for plots: there is no flag that does without them.
    assert '"hata-sglang[plot]", found no such package' in capsys.readouterr().err
    assert not out.exists()
