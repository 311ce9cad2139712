"""``hata-sglang bench``: its sub-commands, and the arguments of ``op``."""

from __future__ import annotations

import argparse
from pathlib import Path

from hata_sglang.bench.scenarios import PRESETS
from hata_sglang.errors import Refusal


def add_bench_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands of ``hata-sglang bench``.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        Of `bench`.
    """
    from hata_sglang.bench.serve_cli import add_serve_arguments, run_serve

    actions = parser.add_subparsers(metavar="ACTION", required=True)
    summary = "Time the stages of a sparse layer on a GPU, beside dense attention and exact top-k."
    op = actions.add_parser("op", help=summary, description=summary)
    op.add_argument("--preset", choices=PRESETS, default="headline", help="scenarios (headline)")
    op.add_argument("--only", default="", metavar="TEXT", help="those with TEXT in their line")
    op.add_argument("--list", action="store_true", help="print the scenarios, measure nothing")
    op.add_argument("--out", type=Path, help="CSV; rows that one there has are skipped")
    op.set_defaults(action=run_op)
    summary = "Time SGLang's server under whole workloads, stock and with hata."
    serve = actions.add_parser("serve", help=summary, description=summary)
    add_serve_arguments(serve)
    serve.set_defaults(action=run_serve)


def run_op(args: argparse.Namespace) -> int:
    """``bench op``: every scenario that the CSV lacks; 1 if one failed.

    Raises
    ------
    HataError
        Without a CSV file or a CUDA GPU, or if no scenario has the text of ``--only``.
    """
    scenarios = [each for each in PRESETS[args.preset]() if args.only in str(each)]
    if not scenarios:
        raise Refusal.of("--only", "a part of a line of --list", repr(args.only))
    if args.list:
        print(*scenarios, sep="\n")
        return 0
    if args.out is None:
        raise Refusal.of("--out", "a CSV file", "nothing")
    import torch

    if not torch.cuda.is_available():
        found = "torch.cuda.is_available() is False"
        raise Refusal.of("bench op", "a CUDA GPU (bench serve runs on a CPU too)", found)
    from hata_sglang.bench.op import run_scenarios
    from hata_sglang.bench.op_rows import COLUMNS, KEYS
    from hata_sglang.evaluation.results import ResultFile

    return 1 if run_scenarios(scenarios, ResultFile(args.out, COLUMNS, KEYS)) else 0
