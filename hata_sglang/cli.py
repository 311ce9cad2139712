"""The console script ``hata-sglang``.

Exit codes: 0 done, 2 refused (a message on standard error, no traceback). Sub-commands import
what they need when they run, so that ``--help`` and errors of usage do not wait for torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from hata_sglang import __version__
from hata_sglang.errors import HataError

EXIT_REFUSED = 2


def _config_check(argv: Sequence[str], prog: str) -> int:
    from hata_sglang.demo.model import model_folder
    from hata_sglang.weights import check as config_check

    parser = argparse.ArgumentParser(
        prog=prog,
        description="Check a YAML file against a model and print what it means for each layer.",
    )
    config_check.add_arguments(parser)
    args = parser.parse_args(argv)
    return config_check.run(args.file, model_folder(args.model))


def _train(argv: Sequence[str], prog: str) -> int:
    from hata_sglang.training.cli import add_train_arguments, run_train

    parser = argparse.ArgumentParser(prog=prog, description="Train hash weights for a model.")
    add_train_arguments(parser)
    return run_train(parser.parse_args(argv))


def _import_hashattention(argv: Sequence[str], prog: str) -> int:
    from hata_sglang.training.import_hashattention import add_import_arguments, run_import

    parser = argparse.ArgumentParser(
        prog=prog, description="Turn weights that HashAttention's authors published into a set."
    )
    add_import_arguments(parser)
    return run_import(parser.parse_args(argv))


def _eval(argv: Sequence[str], prog: str) -> int:
    from hata_sglang.evaluation.cli import add_eval_arguments, run_eval

    parser = argparse.ArgumentParser(
        prog=prog, description="Measure a model's quality under dense and sparse decoding."
    )
    add_eval_arguments(parser)
    return run_eval(parser.parse_args(argv))


def _bench(argv: Sequence[str], prog: str) -> int:
    from hata_sglang.bench.cli import add_bench_arguments, run_bench

    parser = argparse.ArgumentParser(
        prog=prog, description="Measure the speed of a sparse layer and of a server."
    )
    add_bench_arguments(parser)
    return run_bench(parser.parse_args(argv))


def _demo_model(argv: Sequence[str], prog: str) -> int:
    from hata_sglang.demo.model import add_demo_model_arguments, run_demo_model

    parser = argparse.ArgumentParser(
        prog=prog, description="Get the demo model, once, and print its folder."
    )
    add_demo_model_arguments(parser)
    return run_demo_model(parser.parse_args(argv))


def _weights(argv: Sequence[str], prog: str) -> int:
    parser = argparse.ArgumentParser(prog=prog, description="List the shipped hash weights.")
    parser.parse_args(argv)

    from hata_sglang.weights import load_weights, shipped_weights
    from hata_sglang.weights.check import card_line

    # Loaded whole: a set whose checksum is wrong is refused here as it would be by a server.
    for name in shipped_weights():
        print(f"{name}\n    {card_line(load_weights(name).card)}")
    return 0


COMMANDS = {
    "config check": (_config_check, "check a YAML file against a model; print the table per layer"),
    "train": (_train, "train hash weights for a model"),
    "import-hashattention": (_import_hashattention, "import HashAttention's published weights"),
    "eval": (_eval, "measure quality, dense and per method"),
    "bench": (_bench, "measure speed: a sparse layer on a GPU, a server, and plots"),
    "demo-model": (_demo_model, "get the demo model (SmolLM2-135M-Instruct), once"),
    "weights": (_weights, "list the shipped hash weights"),
}


def build_parser() -> argparse.ArgumentParser:
    """The top-level parser: which sub-command, whose own parser reads the rest.

    Returns
    -------
    argparse.ArgumentParser
        With the attribute `run` set on the namespace of a sub-command.
    """
    parser = argparse.ArgumentParser(
        prog="hata-sglang", description="HATA, hash-aware top-k attention for SGLang."
    )
    parser.add_argument("--version", action="version", version=f"hata-sglang {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    groups = {}
    for name, (function, summary) in COMMANDS.items():
        group, _, action = name.rpartition(" ")
        if group and group not in groups:
            words = commands.add_parser(group, help="work with YAML configurations")
            groups[group] = words.add_subparsers(metavar="ACTION", required=True)
        # The sub-command's own parser owns every argument after its name, --help included.
        sub = (groups[group] if group else commands).add_parser(
            action, help=summary, add_help=False, prefix_chars="\0"
        )
        sub.add_argument("rest", nargs=argparse.REMAINDER)
        sub.set_defaults(run=function, name=name)
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
    args = build_parser().parse_args(argv)
    try:
        return args.run(args.rest, f"hata-sglang {args.name}")
    except HataError as error:
        print(error, file=sys.stderr)
        return EXIT_REFUSED
    except BrokenPipeError:
        # `hata-sglang weights | head`: whoever read has enough.
        sys.stderr.close()
        return 0


if __name__ == "__main__":
    raise SystemExit(main())
