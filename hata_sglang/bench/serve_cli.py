"""Arguments of ``hata-sglang bench serve``."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from hata_sglang.bench.models import CONFIGS, read_config, write_shape
from hata_sglang.bench.workloads import (
    DEFAULTS,
    NAMES,
    Workload,
    read_count,
    read_size,
    read_tokens,
)
from hata_sglang.errors import Problem, Refusal, refuse_any

#: Sizes for a CPU, and for the demo model, whose context is 8,192.
SMALL = {
    "one": ["1x4096"],
    "unrelated": ["2x2048"],
    "shared": ["4x3072"],
    "short": ["4x200"],
}
OUTPUT, SMALL_OUTPUT = 256, 32
QUESTION, SMALL_QUESTION = 200, 32
WHAT = {
    "one": "one long request",
    "unrelated": "long requests that share nothing",
    "shared": "users with a question each about one document, which is read before",
    "short": "short chats",
}


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


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bench serve`` but for the CSV and the plots."""
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--model", type=Path, metavar="DIR", help="checkpoint (the demo model)")
    model.add_argument("--shape", choices=sorted(CONFIGS), help="no weights: dummy ones")
    parser.add_argument(
        "--dummy-weights", action="store_true", help="for --model: do not load its weights"
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
    parser.add_argument("--workloads", nargs="+", choices=NAMES, default=list(NAMES))
    for name, what in WHAT.items():
        default = ", ".join(DEFAULTS[name])
        small = ", ".join(SMALL[name])
        parser.add_argument(
            f"--{name}",
            nargs="+",
            type=read_size,
            metavar="USERSxTOKENS",
            help=f"{what} ({default}; on a CPU and for the demo model {small})",
        )
    parser.add_argument("--question-tokens", type=read_tokens, help=f"of shared ({QUESTION})")
    parser.add_argument("--output-tokens", type=read_tokens, help=f"of every request ({OUTPUT})")
    parser.add_argument("--repeats", type=int, default=1, help="of every workload (1)")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
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
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for an arm (3600)")


def make_workloads(args: argparse.Namespace, *, small: bool) -> list[Workload]:
    """The workloads that the command line asks for.

    Parameters
    ----------
    args : argparse.Namespace
    small : bool
        Fill in sizes for a CPU.

    Raises
    ------
    Refusal
        If one has fewer than two output tokens per request: nothing would be between them.
    """
    output = args.output_tokens or (SMALL_OUTPUT if small else OUTPUT)
    question = args.question_tokens or (SMALL_QUESTION if small else QUESTION)
    problems = []
    if output < 2:
        problems.append(Problem("--output-tokens", "at least 2", str(output)))
    if args.repeats < 1:
        problems.append(Problem("--repeats", "at least 1", str(args.repeats)))
    refuse_any(problems)
    defaults = SMALL if small else DEFAULTS
    made = []
    for name in args.workloads:
        sizes = getattr(args, name) or [read_size(text) for text in defaults[name]]
        own = question if name == "shared" else 0
        made += [Workload(name, users, tokens, output, own) for users, tokens in sizes]
    return list(dict.fromkeys(made))


def check_model(config: dict[str, Any], needed: int) -> None:
    """Refuse requests that are longer than the model's context.

    Raises
    ------
    Refusal
    """
    longest = config.get("max_position_embeddings")
    if longest is not None and needed > longest:
        expected = f"requests of at most {longest} tokens, the context of the model"
        raise Refusal.of("--one, --unrelated, --shared, --short", expected, str(needed))


def run_serve(args: argparse.Namespace) -> int:
    """``bench serve``: every workload through every arm; 1 if an arm failed."""
    from hata_sglang.bench.serve import COLUMNS, KEYS, run_arms
    from hata_sglang.bench.serve_arms import (
        RANDOM_BITS,
        check_server_args,
        common_flags,
        context_length,
        make_arms,
        random_arm,
    )
    from hata_sglang.demo.model import ensure_demo_model
    from hata_sglang.evaluation.arms import demo_config
    from hata_sglang.evaluation.results import ResultFile
    from hata_sglang.evaluation.server import exit_on_sigterm
    from hata_sglang.seams.cpu_preview import has_cuda_driver

    more = shlex.split(args.server_args)
    check_server_args(more)
    has_gpu = has_cuda_driver()
    if args.device == "cuda" and not has_gpu:
        raise Refusal.of("--device", "cpu or auto on a machine without a GPU", "cuda")
    if args.model is not None and args.config is None:
        raise Refusal.of("--config", "a YAML file for this model", "none")
    if args.bits and (args.shape is None or args.config is not None):
        raise Refusal.of("--bits", "--shape without --config", "another model's codes")
    on_cpu = args.device == "cpu" or not has_gpu
    demo = args.model is None and args.shape is None
    asked = make_workloads(args, small=on_cpu or demo)
    needed = context_length(asked)
    with TemporaryDirectory(prefix="hata-bench-") as name:
        folder = Path(name)
        configs = args.config
        if args.shape:
            model = write_shape(args.shape, folder, needed)
            if configs is None:
                bits = dict.fromkeys(args.bits or [RANDOM_BITS])
                configs = [random_arm(each, folder) for each in bits]
        else:
            model = (args.model or ensure_demo_model()).resolve()
            configs = configs or [("hata", demo_config())]
        config = read_config(model)
        check_model(config, needed)
        dummy = args.dummy_weights or args.shape is not None
        flags = common_flags(model, asked, on_cpu=on_cpu, dummy=dummy, more=more)
        stock = args.attention_backend or ("torch_native" if on_cpu else "flashinfer")
        arms = make_arms(flags, stock, configs, folder)
        results = ResultFile(args.out, COLUMNS, KEYS)
        exit_on_sigterm()
        console = Console()
        failed = run_arms(
            arms,
            [(workload, repeat) for workload in asked for repeat in range(args.repeats)],
            results,
            model=model.name,
            weights="dummy weights" if dummy else "checkpoint",
            vocabulary=config["vocab_size"],
            folder=folder,
            timeout=args.timeout,
            say=lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True),
        )
    console.print(f"{args.out}: {len(results)} rows", highlight=False)
    return 1 if failed else 0
