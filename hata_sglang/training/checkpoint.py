"""The model's folder: its config and its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hata_sglang.errors import Refusal


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
