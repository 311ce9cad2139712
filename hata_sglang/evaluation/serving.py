"""Servers to be graded, started one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from rich.console import Console

from hata_sglang.config import HataConfig
from hata_sglang.errors import Refusal
from hata_sglang.evaluation.arms import ARMS, LAUNCHER, arm_settings, dense_server
from hata_sglang.evaluation.budgets import budget_name
from hata_sglang.evaluation.client import Client
from hata_sglang.evaluation.server import ServerProcess
from hata_sglang.evaluation.sparsity import Arm
from hata_sglang.methods import choice, methods
from hata_sglang.weights import read_card


def arm_flags(
    arm: str,
    config: str | Path | None,
    folder: Path,
    weights: Mapping[str, str] | None = None,
    budget: int | float | None = None,
) -> tuple[Arm, str, list[str]]:
    """What one arm is called, its launcher (a module), and the flags of that.

    All sparse arms have the budget, sink, recent and dense layers of one file; only the method
    differs.

    Parameters
    ----------
    arm : str
        One of `ARMS`.
    config, weights, budget
        As in `hata_sglang.evaluation.arms.arm_settings`; dense takes no part of them.
    folder : Path
        Gets the YAML file of a sparse arm.

    Raises
    ------
    Refusal
        If `arm` is not in `ARMS`, or as `arm_settings`.
    """
    if arm not in ARMS:
        raise Refusal.of("arm", choice(ARMS), repr(arm))
    if arm == "dense":
        return Arm(arm), *dense_server()
    settings = arm_settings(arm, config, weights, budget)
    # A budget below sink + recent is refused here, not by a server.
    described = describe(arm, HataConfig.parse(settings))
    path = folder / f"{arm}.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return described, LAUNCHER, ["--hata-config", str(path)]


def describe(name: str, config: HataConfig) -> Arm:
    """What a server with this configuration is called in the tables.

    Bits, budget and the mean of the values left out are those of the file's top level, not of its
    overrides per layer.
    """
    method, bits = methods()[config.method], ""
    if method.trained:
        card = read_card(config.weights)
        bits = str(card.bits)
        # As `eval offline` has it.
        name += " + mean" if card.left_out and config.left_out != "none" else ""
    elif method.coded:
        bits = str(config.bits or method.default_bits)
    return Arm(name, config.method, bits, budget_name(config.budget))


@contextmanager
def started(
    arm: str,
    model: Path,
    config: Path | None,
    flags: Sequence[str],
    console: Console,
    weights: Mapping[str, str] | None = None,
    budget: int | float | None = None,
) -> Iterator[tuple[Client, Arm]]:
    """Start the server of one arm for the length of a ``with`` block.

    Parameters
    ----------
    arm, config, weights, budget
        As in `arm_flags`, whose errors are raised.
    model : Path
        The checkpoint's folder.
    flags : sequence of str
        More flags of the server.
    console : Console
        Shows what is waited for.
    """
    with TemporaryDirectory(prefix="hata-arm-") as folder:
        described, module, own = arm_flags(arm, config, Path(folder), weights, budget)
        waits = f"{described.label}: starting SGLang's server"
        with console.status(waits) as status:

            def show(seconds: float) -> None:
                status.update(f"{waits}, {seconds:.0f} s")

            arguments = ["--model-path", str(model), *own, *flags]
            with ServerProcess(arguments, module=module, on_wait=show) as server:
                status.stop()  # rich shows one of these at a time, and progress bars follow
                yield server.client, described
