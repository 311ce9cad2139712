"""Arguments of ``hata-sglang bench``."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from hata_sglang.bench.scenarios import PRESETS
from hata_sglang.bench.shapes import SHAPES, read_shape, write_model
from hata_sglang.bench.workloads import WORKLOADS, Workload, read_count, read_workload
from hata_sglang.errors import Problem, Refusal

#: Tokens that every request generates, and of a question about a shared document; fewer on a CPU.
OUTPUT, SMALL_OUTPUT = 256, 32
QUESTION, SMALL_QUESTION = 200, 32


def add_bench_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands of ``hata-sglang bench``.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        Of `bench`. Its namespaces have the attribute `action`, for `run_bench`.
    """
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    summary = "Time the stages of a sparse layer on a GPU, beside dense attention and exact top-k."
    op = actions.add_parser("op", help=summary, description=summary)
    op.add_argument("--preset", choices=PRESETS, default="headline", help="scenarios (headline)")
    op.add_argument("--only", default="", metavar="TEXT", help="those with TEXT in their line")
    op.add_argument("--list", action="store_true", help="print the scenarios, measure nothing")
    op.set_defaults(action=run_op)
    summary = "Time SGLang's server under whole workloads, stock and with hata."
    serve = actions.add_parser("serve", help=summary, description=summary)
    _add_serve_arguments(serve)
    serve.set_defaults(action=run_serve)
    for sub in (op, serve):
        sub.add_argument("--out", type=Path, help="CSV; rows that one there has are skipped")
        sub.add_argument("--plots", type=Path, metavar="DIR", help="draw the CSV at the end")
    summary = "Draw the CSV files of both."
    plot = actions.add_parser("plot", help=summary, description=summary)
    plot.add_argument("csv", nargs="+", type=Path)
    plot.add_argument("--out", type=Path, required=True, help="folder")
    plot.set_defaults(action=run_plot)


def _add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--model", type=Path, metavar="DIR", help="checkpoint (the demo model)")
    model.add_argument(
        "--shape", type=read_shape, metavar="NAME", help=f"dummy weights: {', '.join(SHAPES)}"
    )
    parser.add_argument(
        "--config",
        action="append",
        type=read_named_path,
        metavar="NAME=YAML",
        help="an arm with hata; repeatable (the demo model's, or random codes for --shape)",
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
        "--attention-backend",
        metavar="NAME",
        help="of the stock arm, and inside of hata (flashinfer; on a CPU torch_native)",
    )
    parser.add_argument(
        "--server-args",
        default="",
        metavar="FLAGS",
        help='of SGLang, for every arm, in one string: "--mem-fraction-static 0.85"',
    )


def read_named_path(text: str) -> tuple[str, Path]:
    """Read ``NAME=PATH`` or ``PATH`` (named as the file). The type of an argument of argparse.

    Raises
    ------
    argparse.ArgumentTypeError
        If a part is empty, or the name is that of the stock arm.
    """
    name, sign, path = text.partition("=")
    if not sign:
        name, path = Path(text).stem, text
    if not name or not path or name == "stock" or "/" in name:
        raise argparse.ArgumentTypeError(
            f"expected NAME=PATH, NAME a word other than stock, found {text!r}"
        )
    return name, Path(path)


def run_bench(args: argparse.Namespace) -> int:
    """Run the sub-command that `add_bench_arguments` parsed.

    Returns
    -------
    int
        0; 1 where a part failed and the others went on. What is wrong with the call is raised as
        `HataError`.
    """
    return args.action(args)


def _finish(args: argparse.Namespace, failed: object) -> int:
    """Say what is in the CSV now, draw it, give the exit code."""
    Console().print(str(args.out), highlight=False, soft_wrap=True)
    if args.plots is not None:
        _draw([args.out], args.plots)
    return 1 if failed else 0


def _need_out(args: argparse.Namespace) -> None:
    if args.out is None:
        raise Refusal.of("--out", "a CSV file", "nothing")


def _say(line: str) -> None:
    Console().print(line, highlight=False, markup=False, soft_wrap=True)


def run_op(args: argparse.Namespace) -> int:
    """``bench op``: every scenario that the CSV lacks; 1 if one failed.

    Raises
    ------
    HataError
        Without a CUDA GPU, or if no scenario has the text of ``--only``.
    """
    scenarios = [each for each in PRESETS[args.preset]() if args.only in str(each)]
    if not scenarios:
        raise Refusal.of("--only", "a part of a line of --list", repr(args.only))
    if args.list:
        for scenario in scenarios:
            print(scenario)
        return 0
    _need_out(args)
    import torch

    if not torch.cuda.is_available():
        found = "torch.cuda.is_available() is False"
        raise Refusal.of("bench op", "a CUDA GPU (bench serve runs on a CPU too)", found)
    from hata_sglang.bench.op import run_scenarios
    from hata_sglang.bench.op_rows import COLUMNS, KEYS
    from hata_sglang.evaluation.results import ResultFile

    failed = run_scenarios(scenarios, ResultFile(args.out, COLUMNS, KEYS), _say)
    return _finish(args, failed)


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


def read_config(model: Path, needed: int) -> dict[str, Any]:
    """The ``config.json`` of a checkpoint, whose contexts have to be of `needed` tokens.

    Raises
    ------
    Refusal
        If there is none, or requests are longer than the model's context.
    """
    path = model / "config.json"
    if not path.is_file():
        found = "no config.json in it" if model.is_dir() else "no such folder"
        raise Refusal.of("--model", "a model's folder, with config.json", f"{model}: {found}")
    config = json.loads(path.read_text())
    config = config.get("text_config", config)
    longest = config.get("max_position_embeddings")
    if longest is not None and needed > longest:
        expected = f"requests of at most {longest} tokens, the context of the model"
        raise Refusal.of("--workloads", expected, str(needed))
    return config


def run_serve(args: argparse.Namespace) -> int:
    """``bench serve``: every workload through every arm; 1 if an arm failed."""
    from hata_sglang.bench import serve_arms
    from hata_sglang.bench.serve import COLUMNS, KEYS, run_arms
    from hata_sglang.demo.model import ensure_demo_model
    from hata_sglang.evaluation.arms import demo_config
    from hata_sglang.evaluation.results import ResultFile
    from hata_sglang.evaluation.server import exit_on_sigterm
    from hata_sglang.seams.cpu_preview import has_cuda_driver

    _need_out(args)
    more = shlex.split(args.server_args)
    serve_arms.check_server_args(more)
    if args.model is not None and args.config is None:
        raise Refusal.of("--config", "a YAML file for this model", "none")
    if args.bits and (args.shape is None or args.config is not None):
        raise Refusal.of("--bits", "--shape without --config", "another model's codes")
    on_cpu = not has_cuda_driver()
    demo = args.model is None and args.shape is None
    workloads = make_workloads(args, small=on_cpu or demo)
    needed = serve_arms.context_length(workloads)
    with TemporaryDirectory(prefix="hata-bench-") as name:
        folder = Path(name)
        configs = args.config
        if args.shape:
            model = write_model(args.shape, folder, needed)
            bits = dict.fromkeys(args.bits or [serve_arms.RANDOM_BITS])
            configs = configs or [serve_arms.random_arm(each, folder) for each in bits]
        else:
            model = (args.model or ensure_demo_model()).resolve()
            configs = configs or [("hata", demo_config())]
        config, dummy = read_config(model, needed), args.shape is not None
        flags = serve_arms.common_flags(model, workloads, on_cpu=on_cpu, dummy=dummy, more=more)
        stock = args.attention_backend or ("torch_native" if on_cpu else "flashinfer")
        arms = serve_arms.make_arms(flags, stock, configs, folder)
        exit_on_sigterm()
        failed = run_arms(
            arms,
            workloads,
            ResultFile(args.out, COLUMNS, KEYS),
            model=model.name,
            weights="dummy weights" if dummy else "checkpoint",
            vocabulary=config["vocab_size"],
            say=_say,
        )
    return _finish(args, failed)


def run_plot(args: argparse.Namespace) -> int:
    """``bench plot``: PNG files out of CSV files."""
    missing = [path for path in args.csv if not path.is_file()]
    if missing:
        raise Refusal([Problem("csv", "a file", f"{path}: no such file") for path in missing])
    _draw(args.csv, args.out)
    return 0


def _draw(files: list[Path], out: Path) -> None:
    """Write the plots of some CSV files and say where."""
    from hata_sglang.bench.plots import write_plots

    for path in write_plots(files, out):
        Console().print(str(path), highlight=False, soft_wrap=True)
