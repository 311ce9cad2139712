"""The arms of ``hata-sglang bench serve``: the same server, stock and with each YAML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from hata_sglang.bench.workloads import Workload
from hata_sglang.config import HataConfig
from hata_sglang.errors import Refusal
from hata_sglang.evaluation.arms import arm_settings

STOCK = "stock"
#: Bits of the random codes of a model without weights, where the command line says nothing else.
RANDOM_BITS = 128
#: Slots beyond those of the workloads, for the warm-up and for what SGLang allocates ahead.
SPARE_SLOTS = 4096
#: Tokens of a context beyond the longest request; SGLang keeps some for itself.
SPARE_CONTEXT = 64


def random_codes(bits: int, folder: Path) -> Path:
    """Write the YAML file of a model without weights: ``random.yaml``, of 64 ``random-64b.yaml``.

    Random hyperplanes cost what HATA's codes of as many bits do.
    """
    settings = {
        "method": "random",
        "bits": bits,
        "budget": {"ratio": 0.0156, "min": 1024, "max": 4096},
        "sink": 16,
        "recent": 64,
        "dense_layers": [0, 1],
    }
    path = folder / ("random.yaml" if bits == RANDOM_BITS else f"random-{bits}b.yaml")
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


class ServeArm(NamedTuple):
    """One server.

    Attributes
    ----------
    name : str
        ``stock``, or the name of a YAML file.
    backend : str
        What ``--attention-backend`` says.
    inner : str
        The backend that does prefill and dense layers; the stock arm's own.
    flags : list of str
        Of SGLang, all of them.
    """

    name: str
    backend: str
    inner: str
    flags: list[str]


def context_length(workloads: Sequence[Workload]) -> int:
    """Tokens of the longest request, and some to spare."""
    return max(each.prompt + each.output for each in workloads) + SPARE_CONTEXT


def common_flags(
    model: Path, workloads: Sequence[Workload], *, on_cpu: bool, dummy: bool, more: Sequence[str]
) -> list[str]:
    """SGLang's flags that all arms have.

    Parameters
    ----------
    model : Path
    workloads : sequence of Workload
        Size the context, the captured batches, and on a CPU the pool.
    on_cpu, dummy : bool
        Run on the CPU; fill the model with dummy weights.
    more : sequence of str
        The user's; last, so that they win.
    """
    users = sorted({1, *(workload.users for workload in workloads)})
    # No request has a grammar, and not every backend takes the tokenizer of `write_model`.
    flags = ["--model-path", str(model), "--random-seed", "0", "--grammar-backend", "none"]
    flags += ["--context-length", str(context_length(workloads))]
    # SGLang keeps one of them back: 127 of 128 users would run, and one wait.
    flags += ["--max-running-requests", str(users[-1] + 1)]
    if dummy:
        flags += ["--load-format", "dummy"]
    if on_cpu:
        slots = max(workload.pool for workload in workloads) + SPARE_SLOTS
        flags += ["--max-total-tokens", str(slots)]
    else:
        # The steady state of a workload is a batch of all its users: one exact graph for each.
        flags += ["--cuda-graph-bs-decode", *map(str, users)]
        flags += ["--cuda-graph-backend-prefill", "disabled"]
    return [*flags, *more]


def make_arms(
    common: Sequence[str], stock: str, configs: Sequence[Path], folder: Path
) -> list[ServeArm]:
    """The stock arm, then one for each YAML file, of its name.

    Parameters
    ----------
    common : sequence of str
        From `common_flags`.
    stock : str
        Attention backend of the stock arm, and the inner backend of a YAML file that leaves it
        to SGLang: the arms differ in the decode of sparse layers alone.
    configs : sequence of Path
    folder : Path
        Where the completed YAML files are written.

    Raises
    ------
    Refusal
        If a file is not valid, or two arms would have one name.
    """
    names = [STOCK, *(path.stem for path in configs)]
    if len(set(names)) < len(names):
        raise Refusal.of("--config", f"files of different names, none of {STOCK}", str(names[1:]))
    arms = [ServeArm(STOCK, stock, stock, [*common, "--attention-backend", stock])]
    for path in configs:
        settings = arm_settings(HataConfig.load(path).method, path)
        if settings.get("inner_backend", "auto") == "auto":
            settings["inner_backend"] = stock
        completed = folder / f"{path.stem}-completed.yaml"
        completed.write_text(yaml.safe_dump(settings, sort_keys=False))
        flags = [*common, "--attention-backend", "hata", "--hata-config", str(completed)]
        arms.append(ServeArm(path.stem, "hata", settings["inner_backend"], flags))
    return arms
