"""The models whose attention is timed: one table, and checkpoints of dummy weights out of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple


class Shape(NamedTuple):
    """Sizes of a model.

    Attributes
    ----------
    name : str
    q_heads, kv_heads, dim : int
        Of the attention of one layer.
    layers, hidden, intermediate, vocabulary : int
        Of the rest.
    family : str
        ``llama`` or ``qwen2``, whose implementation SGLang runs.
    """

    name: str
    q_heads: int
    kv_heads: int
    dim: int
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    family: str = "llama"

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.q_heads // self.kv_heads

    def config(self, context: int) -> dict[str, Any]:
        """Settings of ``config.json`` for a model that takes `context` tokens."""
        return {
            "architectures": [f"{self.family.title()}ForCausalLM"],
            "model_type": self.family,
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.q_heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.dim,
            "max_position_embeddings": context,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "torch_dtype": "bfloat16",
            "hidden_act": "silu",
            "bos_token_id": 1,
            "eos_token_id": 2,
            "tie_word_embeddings": False,
        }


#: By lower-case name. ``tiny`` is for CPUs.
SHAPES = {
    shape.name.lower(): shape
    for shape in (
        Shape("Llama-3.1-8B", 32, 8, 128, 32, 4096, 14336, 128256),
        Shape("Qwen2.5-7B", 28, 4, 128, 28, 3584, 18944, 152064, "qwen2"),
        Shape("Llama-2-7B", 32, 32, 128, 32, 4096, 11008, 32000),
        Shape("SmolLM2-135M", 9, 3, 64, 30, 576, 1536, 49152),
        Shape("tiny", 4, 2, 32, 3, 128, 128, 4096),
    )
}


def write_model(shape: Shape, folder: Path, context: int) -> Path:
    """Write a checkpoint without weights, for SGLang's ``--load-format dummy``.

    Every token of its tokenizer is a word, its id: what dummy weights generate is text, which
    `sglang.benchmark.serving` counts tokens by.

    Parameters
    ----------
    shape : Shape
    folder : Path
        A folder of the shape's name is made in it.
    context : int
        Tokens that the model says it can take.

    Returns
    -------
    Path
        The model's folder.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model = folder / shape.name.lower()
    words = models.WordLevel({str(i): i for i in range(shape.vocabulary)}, unk_token="0")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(model)
    (model / "config.json").write_text(json.dumps(shape.config(context), indent=2))
    return model
