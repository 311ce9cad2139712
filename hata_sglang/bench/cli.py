"""Arguments of ``hata-sglang bench``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from hata_sglang.errors import Problem, Refusal


def add_bench_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands of ``hata-sglang bench``.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        Of `bench`. Its namespaces have the attribute `action`, for `run_bench`.
    """
    from hata_sglang.bench.op_cli import add_op_arguments, run_op
    from hata_sglang.bench.serve_cli import add_serve_arguments, run_serve

    actions = parser.add_subparsers(metavar="ACTION", required=True)
    summary = "Time the stages of a sparse layer on a GPU, beside dense attention and exact top-k."
    op = actions.add_parser("op", help=summary, description=summary)
    add_op_arguments(op)
    op.set_defaults(action=run_op)
    summary = "Time SGLang's engine under whole workloads, stock and with hata."
    serve = actions.add_parser("serve", help=summary, description=summary)
    add_serve_arguments(serve)
    serve.set_defaults(action=run_serve)
    summary = "Draw the CSV files of both."
    plot = actions.add_parser("plot", help=summary, description=summary)
    plot.add_argument("csv", nargs="+", type=Path)
    plot.add_argument("--out", type=Path, required=True, help="folder")
    plot.set_defaults(action=run_plot)
    for sub in (op, serve):
        sub.add_argument("--out", type=Path, help="CSV; rows that one there has are skipped")
        sub.add_argument("--plots", type=Path, metavar="DIR", help="draw the CSV at the end")


def run_bench(args: argparse.Namespace) -> int:
    """Run the sub-command that `add_bench_arguments` parsed.

    Returns
    -------
    int
        0; 1 where a part failed and the others went on. What is wrong with the call is raised as
        `HataError`.
    """
    if args.out is None and not getattr(args, "list", False):
        raise Refusal.of("--out", "a CSV file", "nothing")
    code = args.action(args)
    if getattr(args, "plots", None) is not None:
        draw([args.out], args.plots)
    return code


def run_plot(args: argparse.Namespace) -> int:
    """``bench plot``: PNG files out of CSV files."""
    missing = [path for path in args.csv if not path.is_file()]
    if missing:
        raise Refusal([Problem("csv", "a file", f"{path}: no such file") for path in missing])
    draw(args.csv, args.out)
    return 0


def draw(files: list[Path], out: Path) -> None:
    """Write the plots of some CSV files and say where."""
    from hata_sglang.bench.plots import write_plots

    console = Console()
    for path in write_plots(files, out):
        console.print(str(path), highlight=False, soft_wrap=True)
