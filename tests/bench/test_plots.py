"""Plots out of small CSV files: which files, and what lines they have."""

import sys

import pytest

from hata_sglang import cli

pytest.importorskip("matplotlib")

from hata_sglang.bench.plots import against_context, read_rows

PNG = b"\x89PNG"


@pytest.fixture
def rows(op_csv):
    return read_rows([op_csv])[0].assign(device="NVIDIA H100")


def plotted(out, *files):
    assert cli.main(["bench", "plot", *map(str, files), "--out", str(out)]) == 0
    assert all(path.read_bytes().startswith(PNG) for path in out.iterdir())
    return {path.name for path in out.iterdir()}


def test_files_of_op_and_of_two_devices(serve_csv, rows, tmp_path, capsys):
    rows.to_csv(tmp_path / "op.csv")
    other = tmp_path / "other.csv"
    other.write_text(serve_csv.read_text().replace("H100", "H200"))
    names = plotted(tmp_path / "plots", tmp_path / "op.csv", serve_csv, other)
    assert names == {
        "op-Llama-3.1-8B-NVIDIA_H100.png",
        "serve-Llama-NVIDIA_H100.png",
        "serve-Llama-NVIDIA_H200.png",
    }
    assert {line.rpartition("/")[2] for line in capsys.readouterr().out.splitlines()} == names


def test_lines_against_context(rows):
    (lines,) = against_context(rows).values()
    assert set(lines) == {"hata 128", "exact", "dense"}
    assert list(lines["hata 128"]) == [32768, 131072]
    dense = rows[(rows.stage == "dense, cuda cores") & (rows.context == 131072)]
    assert lines["dense"][131072][0] == dense.p50_us.iloc[0]
    # k 512 of 128K tokens is no 1/64; users of one document are no contexts of their own.
    layer = rows[(rows.stage == "layer") & (rows.k == 2048)]
    assert lines["hata 128"][131072][0] == layer.p50_us.iloc[0]
    assert all(lines["hata 128"][at] < lines["dense"][at] for at in lines["dense"])


def test_dense_is_the_best_of_its_peers(rows):
    rows.loc[rows.stage == "dense, tensor cores", "p50_us"] = 1e9
    (lines,) = against_context(rows).values()
    assert all(value < 1e9 for value, _, _ in lines["dense"].values())


def test_rows_that_were_not_timed_are_no_points(rows):
    rows.loc[(rows.stage == "layer") & (rows.k == 2048), "p50_us"] = float("nan")
    assert against_context(rows) == {}


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
