"""``hata-sglang eval``: tasks and likelihoods through a server, and tables made of the CSVs."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rich.console import Console

from hata_sglang.errors import Refusal

if TYPE_CHECKING:
    from hata_sglang.evaluation.grading import Question


def _add_servers(parser: argparse.ArgumentParser) -> None:
    from hata_sglang.evaluation.arms import ARMS, arm_weights
    from hata_sglang.evaluation.budgets import read_budget, read_count

    start = parser.add_argument_group("servers, started one after the other")
    start.add_argument("--model", type=Path, required=True, help="the checkpoint's folder")
    start.add_argument("--config", type=Path, help="YAML of the sparse arms")
    start.add_argument(
        "--arms", nargs="+", required=True, choices=ARMS, metavar="ARM", help=", ".join(ARMS)
    )
    start.add_argument(
        "--weights",
        nargs="+",
        type=arm_weights,
        default=[],
        metavar="ARM=WEIGHTS",
        help="of trained arms",
    )
    start.add_argument(
        "--budgets",
        nargs="+",
        type=read_budget,
        default=[None],
        metavar="BUDGET",
        help="tokens (256) or shares of the context (0.0156) (default: the YAML's)",
    )
    start.add_argument(
        "--server-flags", default="", help='for every server, in one string: "--dtype float32"'
    )
    parser.add_argument("--concurrency", type=read_count, default=1, help="requests at a time (1)")
    parser.add_argument("--out", type=Path, required=True, help="CSV; one there is gone on with")


def add_eval_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands of ``hata-sglang eval``.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        Of `eval`.
    """
    from hata_sglang.evaluation.budgets import read_count
    from hata_sglang.evaluation.offline import add_offline_arguments, run_offline
    from hata_sglang.evaluation.tasks import TASKS
    from hata_sglang.evaluation.tasks.material import NOVEL
    from hata_sglang.training.texts import KINDS

    actions = parser.add_subparsers(metavar="ACTION", required=True)

    def add(name: str, action: Callable[[argparse.Namespace], int], summary: str):
        sub = actions.add_parser(name, help=summary, description=summary)
        sub.set_defaults(action=action)
        return sub

    server = add("server", run_server, "Score tasks through servers, one CSV row per sample.")
    _add_servers(server)
    names = ("ruler", *TASKS)
    server.add_argument(
        "--tasks",
        nargs="+",
        default=["ruler"],
        choices=names,
        metavar="TASK",
        help=", ".join(names),
    )
    server.add_argument("--lengths", nargs="+", type=int, default=[4096], help="tokens (4096)")
    server.add_argument("--samples", type=read_count, default=20, help="per task and length (20)")
    server.add_argument("--seed", type=int, default=0)

    nll = add("nll", run_nll, "Likelihood of texts, decoded step by step by servers.")
    _add_servers(nll)
    nll.add_argument(
        "--text",
        nargs="+",
        default=[NOVEL],
        help=f"UTF-8 files, {NOVEL} (the default), or kinds of the texts that calibration does "
        f"not train on: {', '.join(KINDS)}",
    )
    nll.add_argument("--chunks", type=read_count, default=8, help="stretches of each text (8)")
    nll.add_argument("--context", nargs="+", type=int, default=[6000], help="tokens before (6000)")
    nll.add_argument("--continuation", type=read_count, default=1000, help="tokens counted (1000)")

    report = add("report", run_report, "Make tables of CSV files of any of these.")
    report.add_argument("csv", nargs="+", type=Path)
    report.add_argument("--out", type=Path, required=True, help="folder")
    report.add_argument(
        "--min-dense",
        type=float,
        default=0.5,
        help="leave out what dense itself scores below this at a length (0.5)",
    )

    offline = add("offline", run_offline, "Judge selectors on captured queries, keys and values.")
    add_offline_arguments(offline)


def _tokenizer(model: Path) -> Any:
    from hata_sglang.training.checkpoint import load_tokenizer

    tokenizer = load_tokenizer(model)
    if tokenizer is None:
        raise Refusal.of("--model", "a folder with a tokenizer", str(model))
    return tokenizer


def _grade(
    args: argparse.Namespace, kind: ModuleType, questions: Sequence[Question], *flags: str
) -> int:
    """Grade every server of the command line: into `args.out`, with the columns of a kind."""
    from hata_sglang.evaluation.grading import grade
    from hata_sglang.evaluation.results import ResultFile
    from hata_sglang.evaluation.server import exit_on_sigterm
    from hata_sglang.evaluation.serving import started
    from hata_sglang.progress import bars

    if args.config is None and set(args.arms) != {"dense"}:
        raise Refusal.of("--config", "a YAML file for the sparse arms", "nothing")
    exit_on_sigterm()
    console, weights = Console(), dict(args.weights)
    more = [*shlex.split(args.server_flags), *flags]
    results = ResultFile(args.out, kind.COLUMNS, kind.KEYS)
    for name in args.arms:
        for budget in [None] if name == "dense" else args.budgets:
            server = started(name, args.model, args.config, more, console, weights, budget)
            with server as (client, arm), bars(console) as progress:
                bar = progress.add_task(arm.label, total=len(questions))
                done = partial(progress.advance, bar)
                grade(client, arm, questions, results, concurrency=args.concurrency, on_rows=done)
    console.print(f"{args.out}: {len(results)} rows")
    return 0


def run_server(args: argparse.Namespace) -> int:
    """``eval server``: every task at every length through every server."""
    from hata_sglang.evaluation import run_tasks
    from hata_sglang.evaluation.tasks import TASKS

    tokenizer, asked = _tokenizer(args.model), []
    names = [name for word in args.tasks for name in (TASKS if word == "ruler" else [word])]
    # A run that is cut off has whole lengths.
    for length in args.lengths:
        for name in dict.fromkeys(names):
            samples = TASKS[name].samples(args.samples, length, tokenizer, args.seed)
            asked += run_tasks.questions(samples, length, args.seed)
    return _grade(args, run_tasks, asked)


def run_nll(args: argparse.Namespace) -> int:
    """``eval nll``: the same stretches of every text through every server."""
    from hata_sglang.evaluation import nll
    from hata_sglang.evaluation.forced import SERVER_FLAGS

    tokenizer, asked = _tokenizer(args.model), []
    texts = [nll.read_text(name) for name in args.text]
    for context in args.context:
        for name, text in texts:
            chunks = nll.make_chunks(tokenizer, text, args.chunks, context, args.continuation)
            asked += nll.questions(chunks, name)
    return _grade(args, nll, asked, *SERVER_FLAGS)


def run_report(args: argparse.Namespace) -> int:
    """``eval report``: Markdown tables out of CSV files."""
    from hata_sglang.evaluation.report import write_report

    print(write_report(args.csv, args.out, min_dense=args.min_dense))
    return 0
