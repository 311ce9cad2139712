"""Plots out of small CSV files: which files, and what lines they have."""

import sys

import pytest

from hata_sglang import cli

pytest.importorskip("matplotlib")

from hata_sglang.bench.plots import by_stage, panels, read_rows

PNG = b"\x89PNG"


@pytest.fixture
def rows(op_csv):
    return read_rows([op_csv])[0]


def test_files_of_op(op_csv, tmp_path, capsys):
    out = tmp_path / "plots"
    assert cli.main(["bench", "plot", str(op_csv), "--out", str(out)]) == 0
    names = {path.name for path in out.iterdir()}
    assert names == {f"op-Llama-3.1-8B-{x}.png" for x in ("context", "batch", "k", "stages")}
    assert all(path.read_bytes().startswith(PNG) for path in out.iterdir())
    assert {line.rpartition("/")[2] for line in capsys.readouterr().out.splitlines()} == names


def test_files_of_both(serve_csv, op_csv, tmp_path):
    out = tmp_path / "plots"
    assert cli.main(["bench", "plot", str(serve_csv), str(op_csv), "--out", str(out)]) == 0
    assert len(list(out.iterdir())) == 5
    assert (out / "serve-Llama.png").read_bytes().startswith(PNG)


def test_files_of_two_devices(serve_csv, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text(serve_csv.read_text().replace("H100", "H200"))
    out = tmp_path / "plots"
    assert cli.main(["bench", "plot", str(serve_csv), str(other), "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {
        f"NVIDIA_{device}-serve-Llama.png" for device in ("H100", "H200")
    }


def test_lines_against_context(rows):
    (table,) = panels(rows, "context").values()
    assert set(table) == {"hata 128", "exact", "dense"}
    assert list(table.index) == [32768, 131072]
    dense = rows[(rows.stage == "dense, cuda cores") & (rows.context == 131072)]
    assert table["dense"][131072] == dense.p50_us.iloc[0]
    # k 512 of 128K tokens is no 1/64; users of one document are no contexts of their own.
    layer = rows[(rows.stage == "layer") & (rows.k == 2048)]
    assert table["hata 128"][131072] == layer.p50_us.iloc[0]
    assert (table["hata 128"] < table["dense"]).all()


def test_lines_against_batch(rows):
    (table,) = panels(rows, "batch").values()
    assert list(table.index) == [1, 8]
    assert table.notna().all(axis=None)


def test_dense_is_the_same_at_every_k_and_the_best_of_its_peers(rows):
    rows.loc[rows.stage == "dense, tensor cores", "p50_us"] = 1e9
    (table,) = panels(rows, "k").values()
    assert list(table.index) == [512, 2048]
    assert table["dense"].nunique() == 1
    assert table["dense"].max() < 1e9


def test_rows_that_were_not_timed_are_no_points(rows):
    rows.loc[(rows.stage == "layer") & (rows.k == 2048), "p50_us"] = float("nan")
    assert panels(rows, "k") == {}
    assert panels(rows, "context") == {}
    assert len(panels(rows, "batch")) == 1


def test_stages_in_the_order_of_the_file(rows):
    table = by_stage(rows)
    assert list(table) == ["encode", "rank", "attend"]
    assert list(table.index[[0, 4]]) == [
        "1 x 32K, k 512, hata 128",
        "4 x 33K, 32K shared, k 512, hata 128",
    ]
    assert table.notna().all(axis=None)


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
