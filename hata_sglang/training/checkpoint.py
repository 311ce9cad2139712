"""The model's folder: its config and its tokenizer."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hata_sglang.errors import Refusal


def _said(arguments: Sequence[str]) -> argparse.Namespace:
    """What SGLang's server arguments say of the config and the tokenizer."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("--trust-remote-code", action="store_true")
    parser.add_argument("--json-model-override-args", type=json.loads, default={})
    return parser.parse_known_args(arguments)[0]


def read_config(model_dir: Path, arguments: Sequence[str] = ()) -> Any:
    """Read a checkpoint's transformers config.

    Parameters
    ----------
    model_dir : Path
    arguments : sequence of str
        SGLang's server arguments: their overrides of the config are applied as SGLang does it.

    Raises
    ------
    Refusal
        If the folder holds none, or one that transformers does not know.
    """
    from transformers import AutoConfig

    if not (model_dir / "config.json").is_file():
        raise Refusal.of("model", "a folder with a Hugging Face checkpoint", str(model_dir))
    said = _said(arguments)
    try:
        config = AutoConfig.from_pretrained(model_dir, trust_remote_code=said.trust_remote_code)
    except ValueError as error:
        expected = "a config.json that transformers can read"
        raise Refusal.of("model", expected, str(error).splitlines()[0]) from error
    config.update(said.json_model_override_args)
    return config


def load_tokenizer(model_dir: Path, arguments: Sequence[str] = ()) -> Any:
    """Load the tokenizer of a checkpoint; arguments as of `read_config`.

    Returns
    -------
    transformers tokenizer or None
        None where the folder has no file of one: token files need none.
    """
    from transformers import AutoTokenizer

    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    if not any((model_dir / name).is_file() for name in names):
        return None
    trusted = _said(arguments).trust_remote_code
    return AutoTokenizer.from_pretrained(model_dir, trust_remote_code=trusted)
