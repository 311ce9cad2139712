"""Running the model once over all texts, or using what an earlier run left behind."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hata_sglang.errors import HataError
from hata_sglang.training.capture import CaptureStore, Sampling, capture_sequences
from hata_sglang.training.data import TokenSequence, total_tokens
from hata_sglang.weights import Fingerprint

DIGEST_FILE = "captures.json"
SPLITS = ("train", "held_out")


def capture_bytes(
    fingerprint: Fingerprint, sequences: Sequence[TokenSequence], sampling: Sampling
) -> int:
    """Disk that the captures of `sequences` take, in bytes."""
    keys = total_tokens(sequences) * fingerprint.num_key_value_heads
    queries = len(sequences) * sampling.queries * fingerprint.num_attention_heads
    return 2 * (keys + queries) * fingerprint.head_dim * fingerprint.num_hidden_layers


def ensure_captures(
    folder: Path,
    model_dir: Path,
    revision: str,
    splits: dict[str, list[TokenSequence]],
    *,
    sampling: Sampling,
    seed: int,
    device: torch.device,
    advance: Callable[[int], None],
) -> dict[str, CaptureStore]:
    """Capture both splits into `folder`, unless it holds the same captures already.

    Parameters
    ----------
    folder : Path
    model_dir : Path
        Hugging Face checkpoint.
    revision : str
        Of the model; captures of another one are made anew.
    splits : dict of str to list of TokenSequence
        ``train`` and ``held_out``.
    sampling : Sampling
    seed : int
    device : torch.device
        float32 on a CPU, bfloat16 on a GPU.
    advance : callable
        Called with the number of tokens done.

    Returns
    -------
    dict of str to CaptureStore

    Raises
    ------
    HataError
        If the disk cannot hold the captures.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    digest = captures_digest(revision, splits, sampling, seed, device)
    stores = {split: CaptureStore(folder / split) for split in SPLITS}
    marker = folder / DIGEST_FILE
    done = sum(total_tokens(splits[split]) for split in SPLITS)
    if marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == {"digest": digest}:
        advance(done)
        return stores
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        shutil.rmtree(folder / split, ignore_errors=True)
    fingerprint = Fingerprint.of(AutoConfig.from_pretrained(model_dir))
    need = sum(capture_bytes(fingerprint, splits[split], sampling) for split in SPLITS)
    free = shutil.disk_usage(folder).free
    if free < 1.1 * need:
        raise HataError(
            f"disk at {folder}: expected {1.1 * need / 1e9:.1f} GB free for captures, found "
            f"{free / 1e9:.1f} GB. Give fewer or shorter texts, or --work-dir on another disk."
        )
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype).to(device).eval()
    before = 0
    for split in SPLITS:
        sequences = splits[split]
        for count in capture_sequences(
            model, sequences, stores[split], sampling=sampling, seed=seed
        ):
            advance(before + total_tokens(sequences[:count]))
        before += total_tokens(sequences)
    marker.write_text(json.dumps({"digest": digest}) + "\n", encoding="utf-8")
    return stores


def captures_digest(
    revision: str,
    splits: dict[str, list[TokenSequence]],
    sampling: Sampling,
    seed: int,
    device: torch.device,
) -> str:
    """SHA-256 over everything that decides the captures."""
    content: dict[str, Any] = {
        "revision": revision,
        "tokens": {split: [s.tokens for s in splits[split]] for split in SPLITS},
        "sampling": asdict(sampling),
        "seed": seed,
        "device": device.type,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
