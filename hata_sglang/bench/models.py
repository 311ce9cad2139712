"""Models of known shapes without weights: a ``config.json``, for SGLang's dummy weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hata_sglang.errors import Refusal

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
#: Settings of ``config.json`` by name. Contexts have no bound of their own: see `write_shape`.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        **LLAMA,
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "llama-2-7b": {
        **LLAMA,
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
    },
    "qwen2.5-7b": {
        **LLAMA,
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    # Small enough for a CPU, and for the tests of this command.
    "tiny": {
        **LLAMA,
        "vocab_size": 4096,
        "hidden_size": 128,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
    },
}


def write_shape(name: str, folder: Path, context: int) -> Path:
    """Write the ``config.json`` of a model without weights.

    Parameters
    ----------
    name : str
        A key of `CONFIGS`.
    folder : Path
        A folder of the model's name is made in it.
    context : int
        Tokens that the model says it can take.

    Returns
    -------
    Path
        The model's folder.
    """
    model = folder / name
    model.mkdir()
    config = {**CONFIGS[name], "max_position_embeddings": context}
    (model / "config.json").write_text(json.dumps(config, indent=2))
    return model


def read_config(model: Path) -> dict[str, Any]:
    """Read the ``config.json`` of a checkpoint.

    Raises
    ------
    Refusal
        If there is none.
    """
    path = model / "config.json"
    if not path.is_file():
        found = "no config.json in it" if model.is_dir() else "no such folder"
        expected = "a model's folder, with config.json"
        raise Refusal.of("--model", expected, f"{model}: {found}")
    config = json.loads(path.read_text())
    return config.get("text_config", config)
