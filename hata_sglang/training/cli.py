"""``hata-sglang train``: arguments and the run."""

from __future__ import annotations

import argparse
from pathlib import Path

from hata_sglang.errors import HataError
from hata_sglang.evaluation.attention_mass import Budget
from hata_sglang.training.hata import HataRecipe
from hata_sglang.training.methods import METHODS


def parse_budget(text: str) -> Budget:
    """Read a budget written as ``K``, or ``K:SINK:RECENT``.

    Raises
    ------
    argparse.ArgumentTypeError
        If `text` has another form.
    """
    parts = text.split(":")
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers += [16, 16]
    if len(numbers) != 3 or min(numbers) < 0 or numbers[0] < numbers[1] + numbers[2] + 1:
        raise argparse.ArgumentTypeError(
            f"expected K or K:SINK:RECENT with K > SINK + RECENT, found {text!r}"
        )
    return Budget(*numbers)


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``hata-sglang train`` on `parser`."""
    need = parser.add_argument_group("what to train")
    need.add_argument("--model", type=Path, required=True, help="Hugging Face checkpoint folder")
    need.add_argument(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="training texts: .jsonl rows with 'text' or 'messages', anything else as plain text",
    )
    need.add_argument(
        "--held-out",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="texts to measure on (default: the last fifth of the training sequences)",
    )
    need.add_argument("--out", type=Path, required=True, help="folder for the weights and card")
    need.add_argument("--method", choices=list(METHODS), default="hata")
    need.add_argument("--bits", type=int, default=128, help="per code (default 128)")
    need.add_argument("--seed", type=int, default=0)
    recipe = HataRecipe()
    how = parser.add_argument_group("how")
    how.add_argument(
        "--objective",
        choices=["attention", "paper"],
        default=recipe.objective,
        help="cross entropy with the true attention (default), or HATA's own loss",
    )
    how.add_argument("--steps", type=int, default=recipe.steps, help="per layer (default 400)")
    how.add_argument(
        "--learning-rate", type=float, default=None, help="default 0.01, with 'paper' 0.1"
    )
    how.add_argument("--queries-per-step", type=int, default=recipe.queries_per_step)
    how.add_argument("--keys-per-step", type=int, default=recipe.keys_per_step)
    how.add_argument("--sequence-length", type=int, default=6144, help="tokens (default 6144)")
    how.add_argument(
        "--minimum-length", type=int, default=2048, help="shorter texts are left out (default 2048)"
    )
    how.add_argument(
        "--budget",
        type=parse_budget,
        nargs="+",
        metavar="K:SINK:RECENT",
        default=[Budget(256, 16, 64), Budget(96, 16, 16)],
        help="budgets to measure at; the first chooses the weights (default 256:16:64 96:16:16)",
    )
    how.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    how.add_argument("--threads", type=int, default=None, help="CPU threads (default: PyTorch's)")
    how.add_argument(
        "--work-dir",
        type=Path,
        default=None,
        help="keep captures here and use those of an earlier run (default: a temporary folder)",
    )
    how.add_argument(
        "--description", default="not described", help="of the training texts, for the card"
    )


def run_train(args: argparse.Namespace) -> int:
    """Run ``hata-sglang train``: train, write, and print the held-out attention mass.

    Returns
    -------
    int
        Exit code 0. Failures raise `HataError`.
    """
    import torch

    # Imports transformers: not paid by the other commands.
    from hata_sglang.training.train import TrainOptions, train

    if args.device == "cuda" and not torch.cuda.is_available():
        raise HataError("--device: expected a CUDA device for 'cuda', found none")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    card = train(
        args.model,
        args.data,
        args.held_out,
        args.out,
        method=args.method,
        recipe=HataRecipe(
            objective=args.objective,
            steps=args.steps,
            learning_rate=args.learning_rate,
            queries_per_step=args.queries_per_step,
            keys_per_step=args.keys_per_step,
        ),
        options=TrainOptions(
            bits=args.bits,
            seed=args.seed,
            sequence_length=args.sequence_length,
            minimum_length=args.minimum_length,
            budgets=tuple(args.budget),
            device=args.device,
            description=args.description,
        ),
        work_dir=args.work_dir,
    )
    print(f"wrote {args.out}")
    for held_out in card.held_out:
        masses = ", ".join(f"{name} {mass:.4f}" for name, mass in held_out.mean.items())
        print(f"held-out attention mass at k = {held_out.budget}: {masses}")
    return 0
