import csv

import pytest

from hata_sglang.errors import Refusal
from hata_sglang.evaluation.results import ResultFile

COLUMNS = ("arm", "index", "text")
ROW = {"arm": "dense", "index": 1, "text": "two\nlines, and a comma"}


def open_file(path):
    return ResultFile(path, COLUMNS, ("arm", "index"))


def test_rows_are_kept_and_known_again(tmp_path):
    path = tmp_path / "new" / "rows.csv"
    results = open_file(path)
    assert not results.has(ROW)
    results.append([ROW])
    assert results.has(ROW)
    again = open_file(path)
    assert again.has({"arm": "dense", "index": "1"})
    assert not again.has({"arm": "dense", "index": 2})
    again.append([{**ROW, "index": 2}])
    assert len(again) == 2
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["index"] for row in rows] == ["1", "2"]
    assert rows[0]["text"] == ROW["text"]
    assert {"date", "commit", "device", "sglang", "torch", "command"} <= rows[0].keys()


def test_other_columns_are_refused(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("arm,index\n")
    with pytest.raises(Refusal, match=r"expected arm, index, text.*found arm, index"):
        open_file(path)


def test_a_row_that_was_cut_off_is_refused(tmp_path):
    path = tmp_path / "rows.csv"
    open_file(path).append([ROW])
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(Refusal, match="whole rows"):
        open_file(path)
