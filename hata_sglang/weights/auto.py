"""``weights: auto``: a shipped set that fits the model, else one in the cache, else a new one.

A new one is calibrated before the server starts, by ``hata-sglang train`` with the package's own
texts, and is there for the next start.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from hata_sglang.config.plan import LayerPlan
from hata_sglang.config.schema import AUTO
from hata_sglang.errors import HataError, Refusal
from hata_sglang.files import default_cache_dir, model_revision
from hata_sglang.methods import methods
from hata_sglang.weights.card import CARD_FILE, Fingerprint
from hata_sglang.weights.store import read_card, shipped_weights

logger = logging.getLogger(__name__)

#: More arguments of ``hata-sglang train``, such as ``--data FILE`` for other texts.
MORE_ENV = "HATA_CALIBRATION"
#: Disk that captures of a calibration take at most, in GB; larger models run more than once.
CAPTURES_GB = 24
#: Bytes of a weights file that tell one from another of the same names and shapes.
SAMPLE_BYTES, SAMPLES = 2**16, 16


class ServedModel(NamedTuple):
    """A model as a server runs it.

    Attributes
    ----------
    hf_config : transformers.PretrainedConfig
        With the overrides.
    path : str or Path
        Folder of its checkpoint, or its name on a hub.
    overrides : mapping
        What the server's arguments change in the checkpoint's config. They may change keys, as a
        longer context by another RoPE does, so that a set belongs to both.
    revision : str, optional
        On the hub: a branch, tag or commit.
    """

    hf_config: Any
    path: str | Path = ""
    overrides: Mapping[str, Any] = MappingProxyType({})
    revision: str | None = None

    @property
    def folder(self) -> Path:
        """The checkpoint's, found as SGLang finds it."""
        return checkpoint(self.path, self.revision)


class Wanted(NamedTuple):
    """A set of weights by what it is for: ``bits`` per token and KV head."""

    method: str
    bits: int


def checkpoint(model_path: str | Path, revision: str | None = None) -> Path:
    """The folder of a model that a path or a name on a hub means; SGLang finds the same one."""
    folder = Path(model_path).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.bin", "*.txt", "*.model", "*.jinja"]
    return Path(snapshot_download(str(model_path), revision=revision, allow_patterns=wanted))


@lru_cache(maxsize=8)
def checkpoint_digest(folder: Path) -> str:
    """Tell a checkpoint from others: by its config, and samples of its weights' files."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for number in range(SAMPLES):
                file.seek(size * number // SAMPLES)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def model_name(model: ServedModel) -> str:
    """A name for a model that no other one has: of its folder, weights, config and overrides."""
    folder = model.folder
    name = f"{folder.resolve().name}-{checkpoint_digest(folder)[:16]}"
    if model.overrides:
        text = json.dumps(dict(model.overrides), sort_keys=True)
        name += f"-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return name


def cached_set(model: ServedModel, wanted: Wanted) -> Path:
    """Where the cache keeps a set for a model, whether it is there or not."""
    name = f"{wanted.method}-{wanted.bits}b"
    return default_cache_dir() / "weights" / model_name(model) / name


def find_set(model: ServedModel, wanted: Wanted) -> str | None:
    """A set that ships and was made for this very model, else one in the cache, else None."""
    fingerprint = Fingerprint.of(model.hf_config)
    for name in () if model.overrides else shipped_weights():
        card = read_card(name)
        same = (card.method, card.bits, card.fingerprint) == (*wanted, fingerprint)
        if same and card.revision == model_revision(model.folder):
            return name
    path = cached_set(model, wanted)
    return str(path) if (path / CARD_FILE).is_file() else None


def wanted_by(plans: Iterable[LayerPlan], group: int) -> dict[LayerPlan, Wanted]:
    """What the plans with ``weights: auto`` ask for."""
    return {
        plan: Wanted(plan.method, methods()[plan.method].resolve_bits(plan.bits, group))
        for plan in plans
        if plan.weights == AUTO
    }


def missing_sets(plans: Iterable[LayerPlan], group: int, model: ServedModel) -> list[Wanted]:
    """What ``weights: auto`` asks for and nobody has made; arguments as of `with_sets`."""
    asked = dict.fromkeys(wanted_by(plans, group).values())
    return [own for own in asked if find_set(model, own) is None]


def with_sets(plans: Sequence[LayerPlan], group: int, model: ServedModel) -> tuple[LayerPlan, ...]:
    """Name the set of every plan whose weights are ``auto``.

    Parameters
    ----------
    plans : sequence of LayerPlan
    group : int
        Query heads per KV head of the model.
    model : ServedModel

    Raises
    ------
    Refusal
        If there is none yet; a server calibrates it before it starts.
    """
    asked = wanted_by(plans, group)
    found = {}
    for wanted in dict.fromkeys(asked.values()):
        found[wanted] = find_set(model, wanted)
        if found[wanted] is None:
            expected = f"a set of {wanted.method}, {wanted.bits} bits, that ships or is cached"
            raise Refusal.of(
                "weights: auto", expected, f"none for {model.path} yet; a server makes it"
            )
    return tuple(
        replace(plan, weights=found[asked[plan]]) if plan in asked else plan for plan in plans
    )


def make_missing(
    plans: Sequence[LayerPlan],
    group: int,
    model: ServedModel,
    device: str,
    arguments: Sequence[str] = (),
) -> None:
    """Calibrate what ``weights: auto`` asks for and is not there.

    Parameters
    ----------
    plans, group, model
        As in `with_sets`.
    device : str
        ``cpu`` or ``cuda``.
    arguments : sequence of str
        The server's arguments that decide the model's numbers.

    Raises
    ------
    HataError
        If calibration failed; it has said why, and left nothing in the cache.
    """
    for wanted in missing_sets(plans, group, model):
        _calibrate(model, wanted, device, arguments)


def _calibrate(model: ServedModel, wanted: Wanted, device: str, arguments: Sequence[str]) -> None:
    folder, target = model.folder, cached_set(model, wanted)
    target.parent.mkdir(parents=True, exist_ok=True)
    logger.warning(
        "hata: no hash weights for %s yet: calibrating %s codes of %d bits, once; they will be in "
        "%s. Captures take up to %d GB of disk in %s.",
        folder.name, wanted.method, wanted.bits, target, CAPTURES_GB, tempfile.gettempdir(),
    )  # fmt: skip
    # A process of its own: it ends with what it took of the GPU.
    command = [sys.executable, "-m", "hata_sglang.cli", "train", "--model", str(folder)]
    command += ["--method", wanted.method, "--bits", str(wanted.bits), "--device", device]
    command += ["--max-disk", str(CAPTURES_GB), "--description", "calibrated at a server's start"]
    command += [f"--sglang-args={shlex.join(arguments)}"] if arguments else []
    command += shlex.split(os.environ.get(MORE_ENV, ""))
    with tempfile.TemporaryDirectory(prefix=".part-", dir=target.parent) as part:
        made = Path(part) / target.name
        done = subprocess.run([*command, "--out", str(made)], stdout=2)
        if done.returncode != 0:
            raise HataError(
                f"weights: auto: expected `{' '.join(command)}` to make a set, found exit code "
                f"{done.returncode}; what it said stands above. Name weights in the YAML, or take "
                "a method without weights."
            )
        # Whole, or not at all; another server may have been faster.
        if not (target / CARD_FILE).is_file():
            os.rename(made, target)
