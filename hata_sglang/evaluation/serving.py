"""Servers to be graded, one after the other: started here, or running already."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from hata_sglang.config import HataConfig
from hata_sglang.errors import Problem, Refusal, refuse_any
from hata_sglang.evaluation.arms import arm_arguments
from hata_sglang.evaluation.budgets import budget_name, yaml_budget
from hata_sglang.evaluation.client import Client
from hata_sglang.evaluation.server import ServerProcess
from hata_sglang.evaluation.sparsity import Arm
from hata_sglang.methods import methods
from hata_sglang.weights import read_card


def describe(name: str, config: HataConfig) -> Arm:
    """What a server with this configuration is called in the tables.

    Bits and budget are those of the file's top level, not of its overrides per layer.
    """
    method, bits = methods()[config.method], ""
    if method.trained:
        bits = str(read_card(config.weights).bits)
    elif method.coded:
        bits = str(config.bits or method.default_bits)
    return Arm(name, config.method, bits, budget_name(config.budget))


def check_where(args: Namespace) -> None:
    """Refuse command lines that say neither or both of what runs and what to start.

    Raises
    ------
    Refusal
        With every problem.
    """
    problems = []
    if args.url and args.arms:
        problems.append(Problem("--arms", "no --url beside it, or --arm NAME", "both"))
    if args.url and not args.arm:
        problems.append(Problem("--arm", "the name of what --url serves", "nothing"))
    if args.url and args.arm and args.arm != "dense" and not args.config:
        expected = "the YAML of the server, for its method, bits and budget"
        problems.append(Problem("--config", expected, "nothing"))
    if not args.url:
        if args.arm:
            problems.append(Problem("--arm", "--url beside it, or --arms NAMES", "no --url"))
        if not args.arms:
            problems.append(Problem("--url or --arms", "one of them", "neither"))
        if not args.model:
            problems.append(Problem("--model", "the checkpoint's folder", "nothing"))
        if not args.config and any(arm != "dense" for arm in args.arms or ()):
            problems.append(Problem("--config", "a YAML file for the sparse arms", "nothing"))
    elif args.budgets:
        problems.append(Problem("--budgets", "no --url beside it", "both"))
    refuse_any(problems)


@contextmanager
def started(
    arm: str,
    budget: int | float | None,
    args: Namespace,
    flags: Sequence[str],
    console: Console,
) -> Iterator[tuple[Client, Arm]]:
    """Start the server of one arm for the length of a ``with`` block."""
    config = HataConfig.load(args.config) if arm != "dense" else None
    wanted = yaml_budget(budget, config.sink + config.recent) if config is not None else None
    # dense takes no part of the YAML file, and needs none.
    path = args.config or ""
    with arm_arguments(arm, args.model, path, dict(args.weights or ()), wanted) as arguments:
        described = Arm(arm)
        if "--hata-config" in arguments:
            file = Path(arguments[arguments.index("--hata-config") + 1])
            described = describe(arm, HataConfig.load(file))
        with console.status(f"{described.label}: starting SGLang's server") as status:

            def show(seconds: float) -> None:
                status.update(f"{described.label}: starting SGLang's server, {seconds:.0f} s")

            with ServerProcess([*arguments, *flags], on_wait=show) as server:
                status.stop()  # rich shows one of these at a time, and progress bars follow
                yield server.client, described


def servers(
    args: Namespace, flags: Sequence[str], console: Console
) -> Iterator[tuple[Client, Arm]]:
    """Give every server that the command line names, one after the other.

    Parameters
    ----------
    args : argparse.Namespace
        With url, arm, model, config, arms, weights and budgets.
    flags : sequence of str
        For the servers that are started.
    console : Console
        Shows what is waited for.

    Yields
    ------
    (Client, Arm)
        A server ends when the next one is asked for.
    """
    if args.url:
        config = HataConfig.load(args.config) if args.arm != "dense" else None
        yield Client(args.url), Arm("dense") if config is None else describe(args.arm, config)
        return
    for arm in args.arms:
        for budget in [None] if arm == "dense" else args.budgets or [None]:
            with started(arm, budget, args, flags, console) as server:
                yield server


def tokenizer_of(args: Namespace) -> Any:
    """The tokenizer of the checkpoint, or of the server that runs already.

    Raises
    ------
    Refusal
        If there is none.
    """
    from transformers import AutoTokenizer

    path = str(args.model) if args.model else Client(args.url).server_info()["tokenizer_path"]
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise Refusal.of("--model", "a folder with a tokenizer", reason) from None
