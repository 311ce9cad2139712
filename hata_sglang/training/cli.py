"""``hata-sglang train``: arguments and the run."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from hata_sglang.errors import HataError
from hata_sglang.methods import Recipe, method_names, methods
from hata_sglang.training.attention_mass import TopK
from hata_sglang.training.recipe_options import make_recipe, option_lines

#: Tokens of a sequence unless asked otherwise, at most. Codes hold up to the distances that they
#: were trained on.
LONGEST = {"cpu": 16_384, "cuda": 32_768}
#: Tokens of each kind of the package's own texts, unless asked otherwise.
OWN_TOKENS = {"cpu": 16_384, "cuda": 98_304}
#: Tokens that the model writes at the end of one of them, of each kind.
OWN_WRITTEN = {"cpu": 64, "cuda": 128}


def parse_budget(text: str) -> TopK:
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
    return TopK(*numbers)


def _gigabytes(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected GB, a number above 0, found {text!r}")
    return number


class _ListOptions(argparse.Action):
    """Print what ``--option`` takes for the method named so far, and stop."""

    def __call__(self, parser, namespace, values, option_string=None):
        print("\n".join(option_lines(methods()[namespace.method].recipe)))
        parser.exit()


def add_recipe_arguments(how: argparse._ArgumentGroup) -> None:
    """Declare what every training takes, whatever it is trained on."""
    how.add_argument("--steps", type=int, default=None, help="per layer (default: the method's)")
    how.add_argument("--learning-rate", type=float, default=None, help="default: the method's")
    how.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the method, any number of times; `hata-sglang train --list-options` "
        "prints them",
    )
    how.add_argument(
        "--budget",
        type=parse_budget,
        nargs="+",
        metavar="K:SINK:RECENT",
        default=[TopK(256, 16, 64), TopK(96, 16, 16)],
        help="budgets to measure at; the first chooses the step (default 256:16:64 96:16:16)",
    )
    how.add_argument(
        "--dtype",
        choices=["float32", "float16"],
        default="float32",
        help="of the weights' file (default float32)",
    )
    how.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    how.add_argument("--threads", type=int, default=None, help="CPU threads (default: PyTorch's)")


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``hata-sglang train`` on `parser`."""
    parser.set_defaults(action=run_train)
    need = parser.add_argument_group("what to train")
    need.add_argument("--model", type=Path, required=True, help="Hugging Face checkpoint folder")
    need.add_argument(
        "--data",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="training texts, in place of the package's own, which are of six kinds: .jsonl rows "
        "with 'text', 'messages' or 'tokens', .npy or .safetensors with token numbers, anything "
        "else as plain text",
    )
    need.add_argument(
        "--held-out",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="texts that the card reports on; looked at once, at the end (default: "
        "the last tenth of --data, which is not trained on then)",
    )
    need.add_argument(
        "--validation",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="texts that choose each layer's step, and that what a selection leaves out is weighed "
        "on (default: a tenth of --data, likewise)",
    )
    need.add_argument("--out", type=Path, required=True, help="folder for the weights and card")
    need.add_argument(
        "--method",
        choices=method_names(trainable=True),
        default="asymmetric",
        help="default: asymmetric",
    )
    need.add_argument(
        "--bits",
        type=int,
        default=None,
        help="per token and KV head (default 128; hashattention: 32 per query head, fixed)",
    )
    need.add_argument("--seed", type=int, default=0)
    how = parser.add_argument_group("how")
    add_recipe_arguments(how)
    how.add_argument(
        "--list-options",
        action=_ListOptions,
        nargs=0,
        help="print the options of --method (named before) and stop",
    )
    how.add_argument(
        "--sequence-length",
        type=int,
        default=None,
        help="tokens (default: the model's context, 32768 at most, on a CPU 16384)",
    )
    how.add_argument(
        "--own-tokens",
        type=int,
        default=None,
        metavar="TOKENS",
        help="of each kind of the package's own texts (default 98304, on a CPU 16384)",
    )
    how.add_argument(
        "--own-written",
        type=int,
        default=None,
        metavar="TOKENS",
        help="that the model itself writes at the end of one of the package's own texts of each "
        "kind (default 128, on a CPU 64)",
    )
    how.add_argument(
        "--minimum-length", type=int, default=2048, help="shorter texts are left out (default 2048)"
    )
    how.add_argument(
        "--sglang-args",
        type=shlex.split,
        default=[],
        metavar="ARGS",
        help="more server arguments for SGLang's run of the model, as one text, such as "
        "'--quantization fp8'",
    )
    how.add_argument(
        "--work-dir",
        type=Path,
        default=None,
        help="keep captures and finished layers here, and go on with those of an earlier run "
        "(default: a temporary folder)",
    )
    how.add_argument(
        "--max-disk",
        type=_gigabytes,
        default=None,
        metavar="GB",
        help="bound of the captures; layers are then captured in groups (default: no bound)",
    )
    how.add_argument(
        "--description", default="not described", help="of the training texts, for the card"
    )


def prepare(args: argparse.Namespace, method: str, more: Sequence[str] = ()) -> Recipe:
    """Make ready what `add_recipe_arguments` asked for; its recipe for a method.

    Parameters
    ----------
    args : argparse.Namespace
    method : str
    more : sequence of str
        Options of the method beside those of the command line, ``key=value``.

    Raises
    ------
    HataError
        If there is no such device, or an option is not the method's.
    """
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        raise HataError("--device: expected a CUDA device for 'cuda', found none")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    common = {"steps": args.steps, "learning_rate": args.learning_rate}
    texts = [f"{name}={value}" for name, value in common.items() if value is not None]
    return make_recipe(methods()[method].recipe, [*texts, *more, *args.option])


def run_train(args: argparse.Namespace) -> int:
    """Run ``hata-sglang train``: train, write, and print what the held-out texts say.

    Returns
    -------
    int
        Exit code 0. Failures raise `HataError`.
    """
    # Import transformers: not paid by ``--help``.
    from hata_sglang.training.architectures import text_config
    from hata_sglang.training.checkpoint import read_config
    from hata_sglang.training.report import describe_cost
    from hata_sglang.training.train import TrainOptions, train

    recipe = prepare(args, args.method)
    written = OWN_WRITTEN[args.device] if args.own_written is None else args.own_written
    config = read_config(args.model, args.sglang_args)
    context = text_config(config).max_position_embeddings
    card = train(
        args.model,
        args.data,
        args.held_out,
        args.out,
        validation_files=args.validation,
        method=args.method,
        recipe=recipe,
        options=TrainOptions(
            bits=args.bits,
            seed=args.seed,
            sequence_length=args.sequence_length or min(LONGEST[args.device], context),
            minimum_length=args.minimum_length,
            own_tokens=args.own_tokens or OWN_TOKENS[args.device],
            own_written=written,
            budgets=tuple(args.budget),
            device=args.device,
            dtype=args.dtype,
            max_disk_gb=args.max_disk,
            description=args.description,
            sglang_arguments=tuple(args.sglang_args),
        ),
        work_dir=args.work_dir,
    )
    print(f"wrote {args.out}")
    for held_out in card.held_out:
        masses = ", ".join(f"{name} {mass:.4f}" for name, mass in held_out.mean.items())
        print(f"held-out attention mass at k = {held_out.budget}: {masses}")
        errors = ", ".join(f"{name} {error:.4f}" for name, error in held_out.output_error.items())
        print(f"held-out error of the output at k = {held_out.budget}: {errors}")
    print(describe_cost(card.created_by))
    return 0
