"""The servers that are compared with each other: dense, and one per method from one YAML file."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from hata_sglang.config import HataConfig
from hata_sglang.errors import Refusal
from hata_sglang.evaluation.budgets import yaml_budget
from hata_sglang.methods import choice, method_names, methods
from hata_sglang.seams.cpu_preview import has_cuda_driver

#: Module that starts a server with hata, or on a CPU.
LAUNCHER = "hata_sglang.launch_server"
#: `dense` is SGLang as it is; the others are values of the YAML key `method`.
ARMS = ("dense", *method_names())
#: YAML keys that belong to a method; all others are what arms have in common.
METHOD_KEYS = ("method", "weights", "bits", "seed")


def demo_config() -> Path:
    """Path of the YAML for the demo model that this package ships."""
    return Path(str(files("hata_sglang") / "configs" / "demo.yaml"))


def dense_server() -> tuple[str, list[str]]:
    """Launcher (a module) and flags of the server that decodes densely.

    On a GPU all is SGLang's choice; hata's inner backend is the same one, unless a YAML names it.
    """
    if has_cuda_driver():
        return "sglang.launch_server", []
    return LAUNCHER, ["--attention-backend", "torch_native"]


def arm_settings(
    arm: str,
    config: str | Path,
    weights: Mapping[str, str] | None = None,
    budget: int | float | None = None,
) -> dict[str, Any]:
    """Settings of one sparse arm: those of a YAML file, with the arm's method.

    Where the file already has the method, it stays as it is, overrides per layer included.
    For another method (or other weights) the file's weights, bits and methods are dropped, in the
    whole model and per layer: a trained arm has the bits of its weights. Random keeps a number of
    bits that the file gives and random can have.

    Parameters
    ----------
    arm : str
        A method.
    config : path
        A YAML file of any method.
    weights : mapping of str to str, optional
        Arm -> a folder or shipped name of hash weights. A trained arm that is not in it has to be
        the method of the file.
    budget : int or float, optional
        Tokens, or a share of the context, for every sparse layer, instead of the file's budgets.

    Returns
    -------
    dict
        What a YAML file would hold; weights paths are absolute.

    Raises
    ------
    Refusal
        If the file is not valid, or a trained arm has no weights.
    """
    weights, base = weights or {}, HataConfig.load(config)
    settings = base.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    layers: dict[str, dict] = settings.pop("layers", {})
    if arm != base.method or arm in weights:
        if methods()[arm].trained and arm not in weights:
            expected = f"a folder or shipped name of weights for arm {arm}"
            raise Refusal.of("weights", expected, f"only those of {base.method}")
        # The mean of the values left out is weighed by trained sets alone.
        keys = METHOD_KEYS if methods()[arm].trained else (*METHOD_KEYS, "left_out")
        dropped = {key: settings.pop(key, None) for key in keys}
        settings = {"method": arm, **settings}
        if arm in weights:
            folder = Path(weights[arm]).expanduser()
            settings["weights"] = str(folder.resolve()) if folder.is_dir() else weights[arm]
        own = methods()[arm]
        if own.coded and not own.trained and dropped["bits"] and dropped["bits"] <= own.max_bits:
            settings["bits"] = dropped["bits"]
        layers = {key: _without(own, keys) for key, own in layers.items()}
    if budget is not None:
        settings["budget"] = yaml_budget(budget, base.sink + base.recent)
        layers = {key: _without(own, ("budget",)) for key, own in layers.items()}
    # An override that is left without a setting would be refused.
    if layers := {key: own for key, own in layers.items() if own}:
        settings["layers"] = layers
    return settings


def _without(settings: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in keys}


def arm_weights(text: str) -> tuple[str, str]:
    """Read one ``ARM=WEIGHTS`` of a command line; the type of an argument of argparse.

    Raises
    ------
    argparse.ArgumentTypeError
        If there is no such arm among the trained ones, or nothing behind the sign.
    """
    arm, _, ref = text.partition("=")
    trained = method_names(trained=True)
    if arm not in trained or not ref:
        raise ArgumentTypeError(
            f"expected ARM=WEIGHTS with an arm of {choice(trained)}, found {text!r}"
        )
    return arm, ref
