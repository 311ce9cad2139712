"""What ran where, at which commit: ``docs/validation.csv``, and the README's table of it.

    pytest ... --validation docs/validation.csv    adds the rows of what this run has shown
    python tests/support/validation.py             makes the README's table from the rows

A row is one feature on one device with one SGLang, and where a server has one, one inner backend. A
newer run replaces it. A feature without a row was not run, and the table says so.
"""

from __future__ import annotations

import csv
import fcntl
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
CSV, README = ROOT / "docs" / "validation.csv", ROOT / "README.md"
BEGIN, END = "<!-- validation: made by tests/support/validation.py -->", "<!-- validation ends -->"
COLUMNS = (
    "feature", "device", "sglang", "inner", "result", "tests", "seconds",
    "date", "commit", "torch", "command",
)  # fmt: skip
#: What makes a row the same as another.
KEY = ("feature", "device", "sglang", "inner")


class Feature(NamedTuple):
    """One line of the table, and the beginnings of the ids of the tests that show it."""

    name: str
    tests: tuple[str, ...]


_CPU, _GPU = "tests/e2e/test_sparse_serving.py::test_", "tests/gpu/test_servers.py::test_"
FEATURES = (
    Feature("kernels give what their references give", ("tests/kernels",)),
    Feature("kernels compile for compute capability 9.0", ("tests/kernels/test_compile.py",)),
    Feature("decoders of every method against brute force", ("tests/plugin/test_decoders.py",)),
    Feature(
        "a budget that covers the context: the answers of stock SGLang",
        ("tests/e2e/test_dense_equality.py", f"{_GPU}covering"),
    ),
    Feature(
        "sparse answers are transformers' under the same selections",
        ("tests/e2e/test_independent_reference.py",),
    ),
    Feature("facts hidden in 6,000 tokens are found, 256 tokens read", (f"{_GPU}hidden",)),
    Feature("counters count what ran", (f"{_CPU}is_sparse", f"{_CPU}counters", f"{_GPU}counters")),
    Feature(
        "radix cache: a cached prefix keeps its codes",
        (f"{_CPU}cached", f"{_CPU}two", f"{_CPU}flush", f"{_GPU}cached"),
    ),
    Feature("many requests at once", (f"{_CPU}concurrent", f"{_GPU}many")),
    Feature(
        "weights swapped under load, and trained on traffic",
        (f"{_CPU}weights_are", f"{_CPU}a_set", f"{_CPU}traffic"),
    ),
    Feature("the README's launch line as printed", (f"{_GPU}launch_line",)),
    Feature("CUDA graphs off", (f"{_GPU}eager",)),
    Feature("every method in a server", (f"{_GPU}method",)),
    Feature(
        "a method from another package: trained, judged, served",
        ("tests/e2e/test_adding_a_method.py",),
    ),
    Feature("lm-evaluation-harness against the server", ("tests/e2e/test_lm_eval.py",)),
    Feature(
        "`attend: flashinfer` (its wiring, on a CPU)",
        ("tests/plugin/test_planned.py", f"{_GPU}attention_by_flashinfer"),
    ),
    Feature("`sglang.Engine` from a plain script", ("tests/e2e/test_engine.py",)),
    Feature("grammars, and no wait for a compiler", ("tests/e2e/test_cpu_server.py",)),
    Feature("`--model-path` alone: calibrated, then served", ("tests/e2e/test_any_model.py",)),
    Feature("Qwen3 and Gemma 3 classes", ("tests/e2e/test_other_architectures.py",)),
    Feature("what is refused, and in what words", ("tests/plugin",)),
    Feature("YAML and weights: hostile files too", ("tests/config", "tests/training/test_weights")),
    Feature("bench serve, stock and hata in one run", ("tests/bench/test_serve_cpu.py",)),
    Feature(
        "training, evaluation and benchmark commands",
        ("tests/training", "tests/evaluation", "tests/bench"),
    ),
)


def feature_of(test: str) -> str | None:
    """Name of the feature that a test shows; the longest beginning of its id decides."""
    fits = [(len(b), f.name) for f in FEATURES for b in f.tests if test.startswith(b)]
    return max(fits)[1] if fits else None


def rows_of(
    outcomes: Iterable[tuple[str, str, str, float]], origin: Mapping[str, str]
) -> list[dict[str, str]]:
    """Rows of one run of the tests.

    Parameters
    ----------
    outcomes : iterable of tuple
        Of each test that ran: its id, inner backend ("" where there is none), ``passed`` or
        ``failed``, and seconds. Skipped tests are not among them.
    origin : mapping of str to str
        What `hata_sglang.evaluation.provenance.provenance` says.
    """
    found: dict[tuple[str, str], list[tuple[str, float]]] = {}
    for test, inner, outcome, seconds in outcomes:
        if name := feature_of(test):
            found.setdefault((name, inner), []).append((outcome, seconds))
    rows = []
    for (name, inner), results in found.items():
        failed = sum(outcome != "passed" for outcome, _ in results)
        rows.append(
            {
                "feature": name,
                "inner": inner,
                "result": f"{failed} failed" if failed else "passed",
                "tests": str(len(results)),
                "seconds": f"{sum(seconds for _, seconds in results):.0f}",
                **{key: origin[key] for key in COLUMNS if key in origin},
            }
        )
    return rows


def read_rows(path: Path = CSV) -> list[dict[str, str]]:
    """The rows of a file; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def write_rows(rows: Iterable[Mapping[str, str]], path: Path = CSV) -> None:
    """Add rows to a file, each in the place of an older one of the same key."""

    def key(row: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(row[name] for name in KEY)

    order = {feature.name: place for place, feature in enumerate(FEATURES)}
    with path.open("a+", newline="", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # the parts of a check end at their own times
        stream.seek(0)
        merged = {key(row): row for row in [*csv.DictReader(stream), *rows]}
        ordered = sorted(merged.values(), key=lambda row: (order.get(row["feature"], 99), key(row)))
        stream.truncate(0)
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(ordered)


def place_of(row: Mapping[str, str]) -> str:
    """Column of the table: a GPU's name or a CPU, and the SGLang release."""
    gpu = row["device"].startswith("NVIDIA")
    return f"{row['device'] if gpu else 'CPU'}, SGLang {row['sglang']}"


def table(rows: list[dict[str, str]]) -> str:
    """The README's table: features down, devices across; what was not run says so.

    The commit of most rows of a device stands above them, others beside their results.
    """
    places = sorted({place_of(row) for row in rows})
    commits = {
        place: Counter(row["commit"] for row in rows if place_of(row) == place).most_common(1)[0][0]
        for place in places
    }
    lines = [
        "| | " + " | ".join(f"{place} ({commits[place]})" for place in places) + " |",
        "| --- |" + " --- |" * len(places),
    ]
    for feature in FEATURES:
        cells = []
        for place in places:
            here = [r for r in rows if r["feature"] == feature.name and place_of(r) == place]
            cells.append(_cell(here, commits[place]) or "not run")
        lines.append(f"| {feature.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(rows: list[dict[str, str]], commit: str) -> str:
    """What rows of one feature and place say; inner backends with one result share it."""
    inners: dict[str, list[str]] = {}
    for row in rows:
        other = "" if row["commit"] == commit else f" ({row['commit']})"
        inners.setdefault(row["result"] + other, []).append(row["inner"])
    return ", ".join(f"{', '.join(i)}: {r}" if any(i) else r for r, i in inners.items())


def in_readme(text: str, rows: list[dict[str, str]]) -> str:
    """The README's text with the table of these rows."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(rows)}\n{END}{after}"


class Recorder:
    """Pytest plugin behind ``--validation FILE``: writes the rows of a run when it ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes: dict[str, tuple[str, str, float]] = {}

    def pytest_runtest_logreport(self, report) -> None:
        """Keep what a test came to; a set-up that failed is a failure, a skip is nothing."""
        if report.skipped or (report.when != "call" and report.passed):
            return
        properties = dict(report.user_properties)
        entry = (properties.get("inner", ""), report.outcome, report.duration)
        if report.failed or report.nodeid not in self.outcomes:
            self.outcomes[report.nodeid] = entry

    def pytest_sessionfinish(self, session) -> None:
        """Write the rows; workers of xdist report to the process that started them."""
        from hata_sglang.evaluation.provenance import provenance

        outcomes = [(test, *entry) for test, entry in self.outcomes.items()]
        if outcomes and not hasattr(session.config, "workerinput"):
            words = " ".join(["pytest", *session.config.invocation_params.args])
            write_rows(rows_of(outcomes, provenance() | {"command": words}), self.path)


if __name__ == "__main__":
    README.write_text(in_readme(README.read_text("utf-8"), read_rows()), encoding="utf-8")
