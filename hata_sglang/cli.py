"""The console script ``hata-sglang``.

Exit codes: 0 done, 2 refused (a message on standard error, no traceback). Sub-commands import
what they need when they run, so that ``--help`` and errors of usage do not wait for torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from hata_sglang import __version__
from hata_sglang.errors import HataError

EXIT_REFUSED = 2

#: Command: module and function that declares its arguments, their `action` too, and a summary.
COMMANDS = {
    "config check": (
        "hata_sglang.weights.check:add_check_arguments",
        "check a YAML file against a model; print what it means for each layer",
    ),
    "train": ("hata_sglang.training.cli:add_train_arguments", "train hash weights for a model"),
    "calibrate": (
        "hata_sglang.training.calibrate_cli:add_calibrate_arguments",
        "train on samples of a running server's traffic, and swap the weights in",
    ),
    "import-hashattention": (
        "hata_sglang.training.import_hashattention:add_import_arguments",
        "turn weights that HashAttention's authors published into a set",
    ),
    "eval": (
        "hata_sglang.evaluation.cli:add_eval_arguments",
        "measure quality, dense and per method",
    ),
    "bench": (
        "hata_sglang.bench.cli:add_bench_arguments",
        "measure speed: a sparse layer on a GPU, or a server",
    ),
    "demo-model": (
        "hata_sglang.demo.model:add_demo_model_arguments",
        "get the demo model (SmolLM2-135M-Instruct), once, and print its folder",
    ),
    "weights": ("hata_sglang.weights.check:add_weights_arguments", "list the shipped hash weights"),
}


def build_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of a command line: only the sub-command that it names has arguments.

    Returns
    -------
    argparse.ArgumentParser
        Its namespaces have the attribute `action`, which runs the sub-command.
    """
    parser = argparse.ArgumentParser(
        prog="hata-sglang", description="HATA, hash-aware top-k attention for SGLang."
    )
    parser.add_argument("--version", action="version", version=f"hata-sglang {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    config = commands.add_parser("config", help="work with YAML configurations")
    groups = {"config": config.add_subparsers(metavar="ACTION", required=True)}
    for name, (place, summary) in COMMANDS.items():
        group, _, last = name.rpartition(" ")
        described = f"{summary[0].upper()}{summary[1:]}."
        sub = groups.get(group, commands).add_parser(last, help=summary, description=described)
        if name.split() == list(argv[: len(name.split())]):
            module, _, declare = place.partition(":")
            getattr(import_module(module), declare)(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the console script.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; ``sys.argv[1:]`` by default.

    Returns
    -------
    int
        0, or 2 after printing why the command refused.
    """
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser(argv).parse_args(argv)
    try:
        return args.action(args)
    except HataError as error:
        print(error, file=sys.stderr)
        return EXIT_REFUSED
    except BrokenPipeError:
        # `hata-sglang weights | head`: whoever read has enough.
        sys.stderr.close()
        return 0


if __name__ == "__main__":
    raise SystemExit(main())
