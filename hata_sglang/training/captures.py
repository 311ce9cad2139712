"""Running the model over all texts, or using what an earlier run left behind.

Captures of a layer take as much disk as its KV cache. Under a bound, layers are
captured in groups that fit it, and the model runs once per group.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hata_sglang.errors import HataError, Refusal
from hata_sglang.seams.model_process import ModelProcess
from hata_sglang.training.capture import CaptureStore, Sampling, capture_jobs
from hata_sglang.training.data import total_tokens
from hata_sglang.training.splits import SPLITS, Splits
from hata_sglang.weights import Fingerprint

DIGEST_FILE = "captures.json"
#: Captures that training holds on a GPU at a time, at most, unless one layer has more.
TRAINED_BYTES = 10**9
#: Splits whose values are kept, too: what the mean of those left out should weigh is measured on
#: the first, and what it is worth on the second.
WITH_VALUES = ("validation", "held_out")


def layer_bytes(fingerprint: Fingerprint, splits: Splits, sampling: Sampling) -> int:
    """Disk that the captures of one layer take, in bytes."""
    sequences = [sequence for split in SPLITS for sequence in splits[split]]
    valued = [sequence for split in WITH_VALUES for sequence in splits[split]]
    keys = total_tokens([*sequences, *valued]) * fingerprint.num_key_value_heads
    queries = len(sequences) * sampling.queries * fingerprint.num_attention_heads
    return 2 * (keys + queries) * fingerprint.head_dim


def group_layers(
    layers: Sequence[int], bytes_per_layer: int, max_bytes: float | None
) -> list[list[int]]:
    """Cut layers into groups whose captures fit a bound.

    Parameters
    ----------
    layers : sequence of int
    bytes_per_layer : int
    max_bytes : float or None
        None: one group.

    Raises
    ------
    Refusal
        If not even one layer fits.
    """
    if max_bytes is None:
        return [list(layers)]
    size = int(max_bytes // bytes_per_layer)
    if size < 1:
        expected = f"at least {bytes_per_layer / 1e9:.4f} GB, the captures of one layer"
        found = f"{max_bytes / 1e9:g} GB; raise it, or give fewer or shorter texts"
        raise Refusal.of("--max-disk", expected, found)
    return [list(layers[start : start + size]) for start in range(0, len(layers), size)]


def together(device: torch.device, bytes_per_layer: int) -> int:
    """How many layers are trained at a time."""
    if device.type == "cpu":
        return 1
    # Training holds them in float32.
    return max(1, int(TRAINED_BYTES // (2 * bytes_per_layer)))


def ensure_captures(
    folder: Path,
    model_dir: Path,
    digest: str,
    splits: Splits,
    layers: Sequence[int],
    *,
    bytes_per_layer: int,
    sampling: Sampling,
    seed: int,
    device: torch.device,
    arguments: Sequence[str],
    advance: Callable[[int], None],
) -> dict[str, CaptureStore]:
    """Capture all splits into `folder`, unless it holds the same captures already.

    Parameters
    ----------
    folder : Path
        Captures of other texts, models or layers in it are removed.
    model_dir : Path
        Hugging Face checkpoint.
    digest : str
        From `captures_digest`.
    splits : dict of str to list of TokenSequence
        Of `SPLITS`.
    layers : sequence of int
    bytes_per_layer : int
        From `layer_bytes`.
    sampling : Sampling
    seed : int
    device : torch.device
        That SGLang runs the model on.
    arguments : sequence of str
        More of its server arguments.
    advance : callable
        Called with the number of tokens done.

    Returns
    -------
    dict of str to CaptureStore

    Raises
    ------
    HataError
        If the disk cannot hold the captures, or SGLang cannot run the model.
    Refusal
        If a layer's attention is more than softmax over all earlier tokens.
    """
    stores = {split: CaptureStore(folder / split) for split in SPLITS}
    marker = folder / DIGEST_FILE
    if _holds(marker, digest, layers):
        advance(sum(total_tokens(splits[split]) for split in SPLITS))
        return stores
    folder.mkdir(parents=True, exist_ok=True)
    marker.unlink(missing_ok=True)
    for split in SPLITS:
        shutil.rmtree(folder / split, ignore_errors=True)
    need, free = 1.1 * bytes_per_layer * len(layers), shutil.disk_usage(folder).free
    if free < need:
        raise HataError(
            f"disk at {folder}: expected {need / 1e9:.1f} GB free for captures, found "
            f"{free / 1e9:.1f} GB. Give fewer or shorter texts, --work-dir on another disk, or "
            "--max-disk GB to capture layers in groups."
        )
    longest = max(len(sequence.tokens) for split in SPLITS for sequence in splits[split])
    before = 0
    with ModelProcess(model_dir, device.type, longest, arguments) as model:
        for split in SPLITS:
            sequences = splits[split]
            values = split in WITH_VALUES
            jobs = capture_jobs(sequences, stores[split], sampling, seed, values=values)
            for count in model.run(jobs, layers):
                advance(before + total_tokens(sequences[:count]))
            before += total_tokens(sequences)
    # Written last: captures without it are those of a run that was cut off.
    content = {"digest": digest, "layers": list(layers)}
    marker.write_text(json.dumps(content) + "\n", encoding="utf-8")
    return stores


def _holds(marker: Path, digest: str, layers: Sequence[int]) -> bool:
    if not marker.is_file():
        return False
    content = json.loads(marker.read_text(encoding="utf-8"))
    return content["digest"] == digest and set(layers) <= set(content.get("layers", ()))


def captures_digest(
    revision: str,
    splits: Splits,
    sampling: Sampling,
    seed: int,
    device: torch.device,
    arguments: Sequence[str] = (),
) -> str:
    """SHA-256 over everything that decides a layer's captures.

    Parameters
    ----------
    revision : str
        Of the model.
    splits : dict of str to list of TokenSequence
    sampling : Sampling
    seed : int
    device : torch.device
    arguments : sequence of str
        More of the server arguments that SGLang loads the model with.
    """
    content: dict[str, Any] = {
        "revision": revision,
        "tokens": {split: [s.tokens for s in splits[split]] for split in SPLITS},
        "sampling": asdict(sampling),
        "seed": seed,
        "device": device.type,
        "arguments": list(arguments),
        "values": WITH_VALUES,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
