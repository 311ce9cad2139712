"""CSV files that grow row by row, and of which a broken-off run goes on."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hata_sglang.errors import Refusal
from hata_sglang.evaluation.provenance import provenance


class ResultFile:
    """Rows with provenance, appended to a CSV.

    Parameters
    ----------
    path : path
        Its folder is made if missing. A file there is gone on with.
    columns : sequence of str
        Of every row, in the order of the file.
    keys : sequence of str
        The columns that tell rows apart.

    Raises
    ------
    Refusal
        If the file there has other columns, or ends in the middle of a row.
    """

    def __init__(self, path: str | Path, columns: Sequence[str], keys: Sequence[str]) -> None:
        self.path = Path(path)
        self.columns = tuple(columns)
        self.keys = tuple(keys)
        self._stamp = provenance()
        self._header = [*self.columns, *self._stamp]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._done: set[tuple[str, ...]] = set()
        if self.path.exists() and self.path.stat().st_size:
            self._done = {self._key(row) for row in self._read()}
        else:
            with self.path.open("w", newline="", encoding="utf-8") as stream:
                csv.writer(stream).writerow(self._header)

    def _read(self) -> list[dict[str, str]]:
        text = self.path.read_bytes()
        if not text.endswith(b"\n"):
            tail = text.rsplit(b"\n", 1)[-1][:80].decode(errors="replace")
            raise Refusal.of(self.path, "whole rows (delete the last line)", repr(tail))
        with self.path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            if reader.fieldnames != self._header:
                found = ", ".join(reader.fieldnames or ())
                raise Refusal.of(str(self.path), ", ".join(self._header), found)
            return list(reader)

    def _key(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(str(row[key]) for key in self.keys)

    def __len__(self) -> int:
        return len(self._done)

    def has(self, row: Mapping[str, Any]) -> bool:
        """Whether a row with the same keys is in the file."""
        return self._key(row) in self._done

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows behind the others; they are on disk when this returns."""
        with self.path.open("a", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, self._header)
            for row in rows:
                writer.writerow({**row, **self._stamp})
            self._done.update(self._key(row) for row in rows)
