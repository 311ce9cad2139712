"""The model's folder: its config, which model it is, and its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hata_sglang.errors import Refusal
from hata_sglang.files import MANIFEST, file_sha256


def read_config(model_dir: Path) -> Any:
    """Read a checkpoint's transformers config.

    Raises
    ------
    Refusal
        If the folder holds none, or one that transformers does not know.
    """
    from transformers import AutoConfig

    if not (model_dir / "config.json").is_file():
        raise Refusal.of("model", "a folder with a Hugging Face checkpoint", str(model_dir))
    try:
        return AutoConfig.from_pretrained(model_dir)
    except ValueError as error:
        expected = "a config.json that transformers can read"
        raise Refusal.of("model", expected, str(error).splitlines()[0]) from error


def model_revision(model_dir: Path) -> str:
    """Identify a checkpoint by the SHA-256 of what its weights were read from.

    Returns
    -------
    str
        ``gguf-sha256:...`` for the demo model, else ``weights-sha256:...`` over
        the weight files in the order of their names.

    Raises
    ------
    Refusal
        If there are no weights.
    """
    manifest = model_dir / MANIFEST
    if manifest.is_file():
        return "gguf-sha256:" + json.loads(manifest.read_text(encoding="utf-8"))["gguf_sha256"]
    files = sorted(model_dir.glob("*.safetensors")) or sorted(model_dir.glob("*.bin"))
    if not files:
        raise Refusal.of("model", "*.safetensors or *.bin", f"none in {model_dir}")
    sums = [file_sha256(path) for path in files]
    return "weights-sha256:" + (sums[0] if len(sums) == 1 else "+".join(sums))


def load_tokenizer(model_dir: Path) -> Any:
    """Load the tokenizer of a checkpoint.

    Returns
    -------
    transformers tokenizer or None
        None where the folder has no file of one: token files need none.
    """
    from transformers import AutoTokenizer

    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    if not any((model_dir / name).is_file() for name in names):
        return None
    return AutoTokenizer.from_pretrained(model_dir)
