"""``hata-sglang eval offline``: every selector on the queries, keys and values of real texts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from hata_sglang.config.layer_ranges import EXPECTED, format_layers, parse_range
from hata_sglang.errors import HataError, Problem, refuse_any


def _layers(text: str) -> range:
    try:
        return parse_range(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected {EXPECTED}, found {text!r}") from None


def _bits(text: str) -> int:
    if not text.isdecimal() or int(text) < 32 or int(text) % 32:
        raise argparse.ArgumentTypeError(f"expected a positive multiple of 32, found {text!r}")
    return int(text)


def add_offline_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``hata-sglang eval offline`` on `parser`."""
    from hata_sglang.evaluation.budgets import read_budget
    from hata_sglang.evaluation.selector_list import DEFAULT, selector_name

    need = parser.add_argument_group("what to measure, and on what")
    need.add_argument("--model", type=Path, required=True, help="Hugging Face checkpoint folder")
    need.add_argument(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="texts, in the forms that `hata-sglang train` reads; none of them trained on",
    )
    need.add_argument("--out", type=Path, required=True, metavar="CSV")
    need.add_argument(
        "--weights",
        nargs="+",
        default=[],
        metavar="NAME_OR_DIR",
        help="trained sets, of any method",
    )
    need.add_argument(
        "--selectors",
        nargs="+",
        type=selector_name,
        default=list(DEFAULT),
        metavar="NAME",
        help=f"to compare with ({' '.join(DEFAULT)})",
    )
    need.add_argument(
        "--budgets",
        nargs="+",
        type=read_budget,
        default=[0.0156, 0.0313, 0.0625],
        metavar="BUDGET",
        help="tokens (256) or shares of each query's context (0.0156 0.0313 0.0625)",
    )
    need.add_argument(
        "--calibration",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="texts whose keys Loki learns from (default: the first half of the sequences of "
        "--data; then all selectors are measured on the second half alone)",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--sink", type=int, default=16, help="first tokens, always kept (16)")
    how.add_argument("--recent", type=int, default=16, help="last tokens, always kept (16)")
    how.add_argument("--length", type=int, default=6144, help="tokens of a sequence, at most")
    how.add_argument(
        "--minimum-length",
        type=int,
        default=None,
        help="shorter ones are left out (default: three quarters of --length)",
    )
    how.add_argument("--sequences", type=int, default=8, help="at most, spread over the texts (8)")
    how.add_argument(
        "--queries",
        type=int,
        default=64,
        help="of each sequence: half of its last 512 tokens, half of its second half (64)",
    )
    how.add_argument(
        "--layers", nargs="+", type=_layers, default=None, help="such as 2-29 (default: all)"
    )
    how.add_argument(
        "--dense-layers",
        nargs="*",
        type=_layers,
        default=[range(2)],
        help="served dense: in the CSV, but not in the printed averages (0-1)",
    )
    how.add_argument("--bits", nargs="+", type=_bits, default=[32, 64, 128], metavar="BITS")
    how.add_argument("--seed", type=int, default=0, help="of the hyperplanes and the queries (0)")
    how.add_argument("--device", choices=["cpu", "cuda"], default="cpu")


def _check(args: argparse.Namespace, head_dim: int, full_layers: Sequence[int]) -> list[int]:
    """Refuse what cannot be measured; return the layers that are."""
    from hata_sglang.evaluation.selector_list import loki_channels

    wanted = full_layers
    if args.layers is not None:
        wanted = sorted({layer for layers in args.layers for layer in layers})
    dense = {layer for layers in args.dense_layers for layer in layers}
    problems = []
    for name in ("length", "sequences", "queries"):
        if getattr(args, name) < 1:
            problems.append(Problem(f"--{name}", "at least 1", str(getattr(args, name))))
    for name in ("sink", "recent"):
        if getattr(args, name) < 0:
            problems.append(Problem(f"--{name}", "at least 0", str(getattr(args, name))))
    least = args.sink + args.recent + 1
    problems += [
        Problem("--budgets", f"at least {least} tokens (sink, recent and one more)", str(budget))
        for budget in args.budgets
        if isinstance(budget, int) and budget < least
    ]
    problems += [
        Problem("--selectors", f"loki with at most {head_dim} channels", f"loki{channels}")
        for channels in loki_channels(args.selectors)
        if channels > head_dim
    ]
    if not set(wanted) <= set(full_layers):
        found = format_layers(set(wanted) - set(full_layers))
        expected = f"layers that see the whole context ({format_layers(full_layers)})"
        problems.append(Problem("--layers", expected, found))
    if set(wanted) <= dense:
        expected = "some of the layers left for the averages"
        problems.append(Problem("--dense-layers", expected, f"all of {format_layers(wanted)}"))
    refuse_any(problems)
    return list(wanted)


def run_offline(args: argparse.Namespace) -> int:
    """Run ``hata-sglang eval offline``: measure, write the CSV and print averages.

    Returns
    -------
    int
        0; what is wrong is raised as `HataError`.
    """
    import torch
    from rich.console import Console

    from hata_sglang.evaluation.offline_rows import csv_rows
    from hata_sglang.evaluation.offline_run import Study, measure, read_texts
    from hata_sglang.evaluation.provenance import write_csv
    from hata_sglang.evaluation.report import offline_section
    from hata_sglang.evaluation.report_data import read_rows
    from hata_sglang.evaluation.selector_list import load_sets
    from hata_sglang.training.architectures import plan_layers
    from hata_sglang.training.checkpoint import read_config
    from hata_sglang.weights import Fingerprint

    if args.device == "cuda" and not torch.cuda.is_available():
        raise HataError("--device: expected a CUDA device for 'cuda', found none")
    config = read_config(args.model)
    model_shape = Fingerprint.of(config)
    layers = _check(args, model_shape.head_dim, plan_layers(config).trained)
    calibration, sequences = read_texts(args, model_shape.vocab_size)
    sets = load_sets(args.weights, config, layers, args.data)
    study = Study(
        layers=tuple(layers),
        selectors=tuple(dict.fromkeys(args.selectors)),
        sets=tuple(sets),
        budgets=tuple(dict.fromkeys(args.budgets)),
        sink=args.sink,
        recent=args.recent,
        queries=args.queries,
        untrained_bits=tuple(dict.fromkeys(args.bits)),
        seed=args.seed,
    )
    results = measure(args, model_shape, study, calibration, sequences, Console(stderr=True))
    dense = {layer for chosen in args.dense_layers for layer in chosen}
    common = {
        "model": args.model.resolve().name,
        "sink": args.sink,
        "recent": args.recent,
        "length": args.length,
        "sequences": len(sequences),
        "seed": args.seed,
    }
    write_csv(args.out, csv_rows(results, dense, **common))
    print("\n\n".join(offline_section(read_rows([args.out])["offline"])))
    print(f"\nwrote {args.out}")
    return 0
