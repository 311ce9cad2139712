"""Grade servers of the demo model: RULER tasks, and the likelihood of a novel, arm by arm.

    python benchmarks/demo_server.py WORK

Arms are dense, exact top-k, the shipped methods, random hyperplanes, sink and recent alone; each
sparse one at 1.56 %, 3.13 % and 6.25 % of the context. Every arm and budget is a server of its
own, of the same backend inside; several run at a time on one GPU. WORK gets `server_tasks.csv`,
`server_nll.csv` and `logs/`; a run that was cut off goes on from there.

A cell is a task at a length. The default ones are those of RULER's that the dense model answered
half of at 4,096 and 7,168 tokens in a trial with other samples (--arms dense --seed 1 --cells all).
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from transformers import AutoTokenizer

from hata_sglang.demo.model import ensure_demo_model
from hata_sglang.evaluation import nll, run_tasks
from hata_sglang.evaluation.forced import SERVER_FLAGS
from hata_sglang.evaluation.results import ResultFile
from hata_sglang.evaluation.serving import started
from hata_sglang.evaluation.tasks import Sample

#: Arm: method, and the end of its weights' name.
ARMS = {
    "dense": ("dense", ""),
    "exact": ("exact", ""),
    "asymmetric": ("asymmetric", "asymmetric-128b"),
    "asymmetric-64b": ("asymmetric", "asymmetric-64b"),
    "hata": ("hata", "hata-128b"),
    "hashattention": ("hashattention", "hashattention-96b"),
    "random": ("random", ""),
    "streaming": ("streaming", ""),
}
BUDGETS = (0.0156, 0.0313, 0.0625)
TASKS = ("niah_single_1", "niah_single_2", "niah_multivalue")
CELLS = tuple(f"{task}:{length}" for task in TASKS for length in (4096, 7168))
ALL_CELLS = tuple(
    f"{task}:{length}"
    for task in run_tasks.task_names(["ruler"])
    if not task.startswith("qa")  # they need a file of the user's
    for length in (2048, 4096, 7168)
)
CONFIG = """\
method: exact
budget: 256
sink: 16
recent: 16
dense_layers: [0, 1]
inner_backend: flashinfer
"""
CONCURRENCY = 16
FLAGS = (
    *("--max-total-tokens", "140000"),  # 16 requests of 8,000 tokens: many servers share the GPU
    *("--max-running-requests", str(CONCURRENCY)),
    *("--cuda-graph-max-bs-decode", str(CONCURRENCY)),
    *("--cuda-graph-backend-prefill", "disabled"),  # prefill is not what is measured
    *("--log-level", "warning"),
    *SERVER_FLAGS,
)


class Grader:
    """What all arms are asked, and where the answers go."""

    def __init__(self, args: argparse.Namespace, model: Path) -> None:
        self.args, self.model = args, model
        self.config = args.work / "base.yaml"
        self.config.write_text(CONFIG)
        tokenizer = AutoTokenizer.from_pretrained(model)
        text, content = nll.read_text()
        self.text = text
        chunks = nll.make_chunks(tokenizer, content, args.chunks, 6000, 1000)
        self.chunks = chunks[:: args.chunk_step]
        self.tokenizer = tokenizer
        # While the first servers start.
        self.samples = ThreadPoolExecutor(1).submit(self._make_samples)
        self.tasks = ResultFile(args.work / "server_tasks.csv", run_tasks.COLUMNS, run_tasks.KEYS)
        self.likelihood = ResultFile(args.work / "server_nll.csv", nll.COLUMNS, nll.KEYS)

    def _make_samples(self) -> list[tuple[int, list[Sample]]]:
        count, seed = self.args.samples, self.args.seed
        cells = [cell.split(":") for cell in self.args.cells]
        return [
            (
                int(length),
                run_tasks.make_samples(task, count, int(length), self.tokenizer, seed, {}),
            )
            for task, length in cells
        ]

    def grade(self, name: str, budget: float | None) -> str | None:
        """Start one server and ask it everything; return what went wrong, if anything."""
        label = f"{name}-{budget}" if budget else name
        method, weights = ARMS[name]
        where = argparse.Namespace(model=self.model, config=self.config, weights=[])
        if weights:
            where.weights = [(method, f"smollm2-135m-instruct-{weights}")]
        start = time.perf_counter()
        with (self.args.work / "logs" / f"{label}.log").open("w") as log:
            console = Console(file=log)
            try:
                with started(method, budget, where, FLAGS, console) as (client, arm):
                    ready = time.perf_counter()
                    for length, samples in self.samples.result():
                        run_tasks.run_samples(
                            client,
                            arm,
                            samples,
                            length,
                            self.args.seed,
                            self.tasks,
                            concurrency=CONCURRENCY,
                        )
                    scored = time.perf_counter()
                    nll.run_nll(
                        client,
                        arm,
                        self.chunks,
                        self.text,
                        self.likelihood,
                        concurrency=CONCURRENCY,
                    )
            except Exception as error:  # one arm's fault is not the others'
                console.print_exception()
                return f"{label}: {type(error).__name__}: {str(error)[-600:]}"
        end = time.perf_counter()
        print(
            f"{label}: start {ready - start:.0f} s, tasks {scored - ready:.0f} s, "
            f"nll {end - scored:.0f} s",
            flush=True,
        )
        return None


def main() -> None:
    """Grade every arm at every budget; exit with 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--jobs", type=int, default=6, help="servers at a time, 6 GB each (6)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS)
    parser.add_argument("--cells", nargs="+", default=CELLS, help="TASK:LENGTH, or all")
    parser.add_argument("--samples", type=int, default=50, help="of every cell (50)")
    parser.add_argument("--chunks", type=int, default=16, help="stretches of the novel (16)")
    parser.add_argument("--chunk-step", type=int, default=1, help="take every n-th of these (1)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if list(args.cells) == ["all"]:
        args.cells = ALL_CELLS
    model = ensure_demo_model()
    (args.work / "logs").mkdir(parents=True, exist_ok=True)
    grader = Grader(args, model)
    jobs = [(arm, budget) for budget in args.budgets for arm in args.arms if arm != "dense"]
    if "dense" in args.arms:
        jobs.insert(0, ("dense", None))
    with ThreadPoolExecutor(args.jobs) as pool:
        faults = list(filter(None, pool.map(lambda job: grader.grade(*job), jobs)))
    print("\n".join(faults), file=sys.stderr)
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
