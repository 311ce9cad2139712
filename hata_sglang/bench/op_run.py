"""Run scenarios of ``hata-sglang bench op``: skip what is done or does not fit, append the rest."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from hata_sglang.bench.exact import MAX_BYTES, scratch_bytes
from hata_sglang.bench.op_rows import DENSE, DENSE_STAGES, EXACT, LAYER, key_of, make_row
from hata_sglang.bench.shapes import Scenario
from hata_sglang.bench.timing import Timing
from hata_sglang.evaluation.results import ResultFile


class Meter(Protocol):
    """What a run asks of the GPU; tests have a meter that needs none."""

    #: What a scenario raises that did not fit after all.
    TOO_LARGE: type[Exception]

    def copy_bandwidth(self) -> float:
        """Bytes per microsecond of a copy."""

    def missing_bytes(self, scenario: Scenario) -> int:
        """Bytes of GPU memory that a scenario needs beyond what is free; 0 or less: it fits."""

    def open(self, scenario: Scenario) -> None:
        """Make a scenario's layers, or take those that are there where only the budget differs."""

    def release(self) -> None:
        """Give the memory back."""

    def stages(self) -> dict[str, Timing]:
        """Times of our stages, by name."""

    def dense(self, tensor_cores: bool) -> Timing:
        """Time of dense decode."""

    def exact(self) -> Timing:
        """Time of exact top-k and the same attention."""


def _place(scenario: Scenario) -> tuple[str, int, int, int]:
    """What dense attention depends on."""
    return scenario.shape.name, scenario.batch, scenario.context, scenario.shared


class OpRun:
    """A run, and what it knows of the file that it appends to.

    Parameters
    ----------
    results : ResultFile
        Of `op_rows.COLUMNS` and `op_rows.KEYS`.
    meter : Meter
    say : callable
        Takes a line about what was skipped, or failed.

    Attributes
    ----------
    failed : int
        Scenarios that raised what is no lack of memory. They have no rows, so that another run
        tries them again.
    """

    def __init__(self, results: ResultFile, meter: Meter, say: Callable[[str], None]) -> None:
        self.results, self.meter, self.say = results, meter, say
        self.failed = 0
        self._copy: float | None = None
        self._open: tuple | None = None
        self._dense: dict[tuple[str, int, int, int], float] = {}
        with results.path.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                if row["method"] == DENSE and row["p50_us"]:
                    size = (int(row[name]) for name in ("batch", "context", "shared"))
                    place = (row["shape"], *size)
                    self._note_dense(place, float(row["p50_us"]))

    def _note_dense(self, place: tuple[str, int, int, int], p50: float) -> None:
        self._dense[place] = min(p50, self._dense.get(place, p50))

    def done(self, scenario: Scenario) -> bool:
        """Whether the file has the scenario's layer: its rows are appended together."""
        return self.results.has(key_of(scenario, LAYER))

    def run(self, scenarios: Sequence[Scenario], on_done: Callable[[], Any] = lambda: None) -> None:
        """Measure what the file lacks.

        Parameters
        ----------
        scenarios : sequence of Scenario
            In the order of `presets.in_order`: layers are kept as long as only the budget changes.
        on_done : callable, optional
            Called after each scenario, skipped or not.
        """
        for scenario in scenarios:
            if not self.done(scenario):
                self._run_one(scenario)
            on_done()
        self.meter.release()

    def _run_one(self, scenario: Scenario) -> None:
        if self._copy is None:
            self._copy = self.meter.copy_bandwidth()
        try:
            if self._open != scenario.buffers:
                self.meter.release()
                self._open = None
                if (missing := self.meter.missing_bytes(scenario)) > 0:
                    self._skip(scenario, f"{missing / 1e9:.1f} GB of GPU memory missing")
                    return
            self.meter.open(scenario)
            self._open = scenario.buffers
            self.results.append(self._measure(scenario))
        except self.meter.TOO_LARGE:
            self._open = None
            self._skip(scenario, "out of GPU memory")
        except Exception as error:
            # One scenario of thousands: the others are worth having. The exit code says it.
            self.failed += 1
            self._open = None
            text = " ".join(str(error).split())[:300]
            self.say(f"failed: {scenario}: {type(error).__name__}: {text}")

    def _skip(self, scenario: Scenario, reason: str) -> None:
        self.say(f"skipped: {scenario}: {reason}")
        row = make_row(scenario, LAYER, None, self._copy, note=f"skipped: {reason}")
        self.results.append([row])

    def _measure(self, scenario: Scenario) -> list[dict[str, Any]]:
        rows = self._measure_dense(scenario)
        place = _place(scenario)
        dense = self._dense.get(place)
        for stage, timing in self.meter.stages().items():
            rows.append(make_row(scenario, stage, timing, self._copy, dense_us=dense))
        if not self.results.has(key_of(scenario, EXACT)):
            rows.append(self._measure_exact(scenario, dense))
        return rows

    def _measure_dense(self, scenario: Scenario) -> list[dict[str, Any]]:
        rows = []
        for stage, tensor_cores in DENSE_STAGES.items():
            if self.results.has(key_of(scenario, stage)):
                continue
            timing, note = self._try(lambda cores=tensor_cores: self.meter.dense(cores))
            if timing is not None:
                place = _place(scenario)
                self._note_dense(place, timing.p50)
            rows.append(make_row(scenario, stage, timing, self._copy, note=note))
        return rows

    def _measure_exact(self, scenario: Scenario, dense: float | None) -> dict[str, Any]:
        timing, size = None, scratch_bytes(scenario)
        note = f"skipped: {size / 1e9:.1f} GB of gathered keys and scores"
        if size <= MAX_BYTES:
            timing, note = self._try(self.meter.exact)
        return make_row(scenario, EXACT, timing, self._copy, dense_us=dense, note=note)

    def _try(self, measure: Callable[[], Timing]) -> tuple[Timing | None, str]:
        """Time a peer. It may not support a shape (FlashInfer: some group sizes); ours goes on."""
        try:
            return measure(), ""
        except Exception as error:
            text = " ".join(str(error).split())[:200]
            return None, f"failed: {type(error).__name__}: {text}"
