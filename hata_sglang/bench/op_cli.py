"""Arguments of ``hata-sglang bench op``."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hata_sglang.bench.presets import FIXED, METHODS, PRESETS, make_scenarios
from hata_sglang.bench.shapes import SHAPES, Shape
from hata_sglang.bench.workloads import read_count, read_tokens
from hata_sglang.errors import Refusal


def read_shape(text: str) -> Shape:
    """Read a shape's name, in any case; the type of an argument of argparse.

    Raises
    ------
    argparse.ArgumentTypeError
        If there is none of that name.
    """
    for name, shape in SHAPES.items():
        if name.lower() == text.lower():
            return shape
    raise argparse.ArgumentTypeError(f"expected one of {', '.join(SHAPES)}, found {text!r}")


def read_budget(text: str) -> float:
    """Read a budget, tokens (512, 4K) or a share of the context (0.0156).

    Raises
    ------
    argparse.ArgumentTypeError
        If it is neither.
    """
    if "." not in text:
        return read_tokens(text)
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        expected = "tokens (512) or a share (0.0156)"
        raise argparse.ArgumentTypeError(f"expected {expected}, found {text!r}")
    return share


def add_op_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bench op`` but for the CSV and the plots."""
    parser.add_argument(
        "--preset",
        choices=(*FIXED, *PRESETS),
        help="scenarios (headline; with a list below, quick); a list replaces the preset's",
    )
    parser.add_argument(
        "--shapes", nargs="+", type=read_shape, metavar="SHAPE", help=", ".join(SHAPES)
    )
    parser.add_argument("--batches", nargs="+", type=read_count, metavar="REQUESTS")
    parser.add_argument("--contexts", nargs="+", type=read_tokens, metavar="TOKENS", help="128K")
    parser.add_argument(
        "--budgets",
        nargs="+",
        type=read_budget,
        metavar="K",
        help="tokens per KV head; below 1 a share of the context",
    )
    parser.add_argument("--bits", nargs="+", type=read_count, help="per code, multiples of 32")
    parser.add_argument(
        "--shared",
        nargs="+",
        type=read_tokens,
        metavar="TOKENS",
        help="first tokens that all contexts share, as users of one document do (none)",
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS)
    parser.add_argument("--list", action="store_true", help="print the scenarios, measure nothing")


def run_op(args: argparse.Namespace) -> int:
    """``bench op``: every scenario that the CSV lacks; 1 if one failed.

    Raises
    ------
    HataError
        Without a CUDA GPU, and as `make_scenarios`.
    """
    scenarios = make_scenarios(
        args.preset,
        shapes=args.shapes,
        batches=args.batches,
        contexts=args.contexts,
        budgets=args.budgets,
        bits=args.bits,
        shared=args.shared,
        methods=args.methods,
    )
    console = Console()
    if args.list:
        for scenario in scenarios:
            console.print(str(scenario), highlight=False)
        args.plots = None
        return 0
    import torch

    if not torch.cuda.is_available():
        found = "torch.cuda.is_available() is False"
        raise Refusal.of("bench op", "a CUDA GPU (bench serve runs on a CPU too)", found)
    from hata_sglang.bench.op_meter import GpuMeter
    from hata_sglang.bench.op_rows import COLUMNS, KEYS
    from hata_sglang.bench.op_run import OpRun
    from hata_sglang.evaluation.results import ResultFile

    results = ResultFile(args.out, COLUMNS, KEYS)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )

    def say(line: str) -> None:
        progress.console.print(line, highlight=False, markup=False, soft_wrap=True)

    run = OpRun(results, GpuMeter(), say)
    with progress:
        bar = progress.add_task("scenarios", total=len(scenarios))
        run.run(scenarios, lambda: progress.advance(bar))
    console.print(f"{args.out}: {len(results)} rows", highlight=False)
    if run.failed:
        say(f"{run.failed} scenarios failed; another run with the same file tries them again")
    return 1 if run.failed else 0
