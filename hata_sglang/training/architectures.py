"""Which models can be trained for, and which of their layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hata_sglang.config.layer_ranges import format_layers
from hata_sglang.errors import Problem, Refusal, refuse_any

# Their attention calls the attention interface with q and k after RoPE, each tested in
# tests/training/test_architectures.py. Names are transformers' `model_type` of the text model.
ARCHITECTURES = ("gemma3_text", "glm", "glm4", "llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class TrainableLayers:
    """Layers of a model, by what their attention sees.

    Attributes
    ----------
    trained : tuple of int
        Layers whose queries see the whole context.
    skipped : tuple of int
        Sliding-window layers: they see a fixed number of tokens, so there is nothing to select.
    """

    trained: tuple[int, ...]
    skipped: tuple[int, ...]

    def describe(self) -> str:
        """One line for people."""
        line = f"layers to train: {format_layers(self.trained)}"
        if self.skipped:
            line += f"; sliding-window layers left out: {format_layers(self.skipped)}"
        return line


def text_config(hf_config: Any) -> Any:
    """The config of the language model, which a multimodal model keeps inside its own."""
    get_text_config = getattr(hf_config, "get_text_config", None)
    return get_text_config() if get_text_config else hf_config


def plan_layers(hf_config: Any) -> TrainableLayers:
    """Decide which layers of a model are trained.

    Parameters
    ----------
    hf_config : transformers.PretrainedConfig
        Of the language model, or of a multimodal model that contains one.

    Returns
    -------
    TrainableLayers

    Raises
    ------
    Refusal
        If the architecture is unknown, caps its attention logits, or has no
        layer that sees the whole context.
    """
    config = text_config(hf_config)
    problems = []
    if config.model_type not in ARCHITECTURES:
        problems.append(
            Problem(
                "model, model_type",
                f"one of {', '.join(ARCHITECTURES)}",
                f"{config.model_type!r}, whose attention has not been checked",
            )
        )
    cap = getattr(config, "attn_logit_softcapping", None)
    if cap is not None:
        problems.append(
            Problem(
                "model, attn_logit_softcapping",
                "none: the sparse kernels compute plain softmax attention",
                str(cap),
            )
        )
    refuse_any(problems)
    layers = range(config.num_hidden_layers)
    skipped = tuple(layer for layer in layers if _slides(config, layer))
    trained = tuple(layer for layer in layers if layer not in skipped)
    if not trained:
        found = f"a sliding window of {config.sliding_window} tokens in every layer"
        raise Refusal.of("model, layers", "at least one with full attention", found)
    return TrainableLayers(trained, skipped)


def _slides(config: Any, layer: int) -> bool:
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return kinds[layer] != "full_attention"
    # Mistral names no kinds: a window, where there is one, holds in every layer.
    return getattr(config, "sliding_window", None) is not None
