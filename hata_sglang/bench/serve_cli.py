"""Arguments of ``hata-sglang bench serve``."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from tempfile import TemporaryDirectory

from hata_sglang.bench.shapes import SHAPES, write_model
from hata_sglang.bench.workloads import WORKLOADS, Workload, read_workload
from hata_sglang.errors import Refusal
from hata_sglang.evaluation.budgets import read_count

#: Tokens that every request generates, and of a question about a shared document; fewer on a CPU.
OUTPUT, SMALL_OUTPUT = 256, 32
QUESTION, SMALL_QUESTION = 200, 32


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bench serve``."""
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--model", type=Path, metavar="DIR", help="checkpoint (the demo model)")
    model.add_argument("--shape", type=str.lower, choices=SHAPES, help="dummy weights")
    parser.add_argument(
        "--config",
        nargs="+",
        type=Path,
        metavar="YAML",
        help="arms with hata, named as the files (the demo model's, or random codes for --shape)",
    )
    parser.add_argument(
        "--bits",
        nargs="+",
        type=read_count,
        metavar="N",
        help="of the random codes of --shape, an arm each (128)",
    )
    parser.add_argument(
        "--workloads",
        nargs="+",
        type=read_workload,
        default=[(name, None) for name in WORKLOADS],
        metavar="NAME=USERSxTOKENS",
        help="; ".join(f"{name}: {what}" for name, (what, *_) in WORKLOADS.items()),
    )
    parser.add_argument(
        "--output-tokens", type=read_count, metavar="N", help=f"of every request ({OUTPUT})"
    )
    parser.add_argument(
        "--server-args",
        default="",
        metavar="FLAGS",
        help='of SGLang, for every arm, in one string: "--mem-fraction-static 0.85"',
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="CSV; rows that one there has are skipped"
    )


def make_workloads(args: argparse.Namespace, *, small: bool) -> list[Workload]:
    """The workloads that a command line asks for; `small` ones, for a CPU, where it has no sizes.

    Raises
    ------
    Refusal
        If one has fewer than two output tokens per request: nothing would be between them.
    """
    output = args.output_tokens or (SMALL_OUTPUT if small else OUTPUT)
    if output < 2:
        raise Refusal.of("--output-tokens", "at least 2", str(output))
    made = []
    for name, size in args.workloads:
        _, usual, few = WORKLOADS[name]
        question = (SMALL_QUESTION if small else QUESTION) if name == "shared" else 0
        for users, tokens in [size] if size else few if small else usual:
            made.append(Workload(name, users, tokens, output, question))
    return list(dict.fromkeys(made))


def run_serve(args: argparse.Namespace) -> int:
    """``bench serve``: every workload through every arm; 1 if an arm failed."""
    from hata_sglang.bench import serve_arms
    from hata_sglang.bench.serve import COLUMNS, KEYS, run_arms
    from hata_sglang.demo.model import ensure_demo_model
    from hata_sglang.evaluation.arms import demo_config
    from hata_sglang.evaluation.results import ResultFile
    from hata_sglang.evaluation.server import exit_on_sigterm
    from hata_sglang.seams.cpu_preview import has_cuda_driver
    from hata_sglang.training.checkpoint import read_config

    if args.model is not None and args.config is None:
        raise Refusal.of("--config", "a YAML file for this model", "none")
    if args.bits and (args.shape is None or args.config is not None):
        raise Refusal.of("--bits", "--shape without --config", "another model's codes")
    on_cpu = not has_cuda_driver()
    workloads = make_workloads(args, small=on_cpu or not (args.model or args.shape))
    with TemporaryDirectory(prefix="hata-bench-") as name:
        folder, configs = Path(name), args.config
        if args.shape:
            model = write_model(SHAPES[args.shape], folder, serve_arms.context_length(workloads))
            bits = dict.fromkeys(args.bits or [serve_arms.RANDOM_BITS])
            configs = configs or [serve_arms.random_codes(each, folder) for each in bits]
        else:
            model = (args.model or ensure_demo_model()).resolve()
            configs = configs or [demo_config()]
        vocabulary, dummy = read_config(model).vocab_size, args.shape is not None
        more = shlex.split(args.server_args)
        flags = serve_arms.common_flags(model, workloads, on_cpu=on_cpu, dummy=dummy, more=more)
        stock = "torch_native" if on_cpu else "flashinfer"
        arms = serve_arms.make_arms(flags, stock, configs, folder)
        exit_on_sigterm()
        failed = run_arms(
            arms,
            workloads,
            ResultFile(args.out, COLUMNS, KEYS),
            model=model.name,
            weights="dummy weights" if dummy else "checkpoint",
            vocabulary=vocabulary,
        )
    return 1 if failed else 0
