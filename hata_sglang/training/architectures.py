"""Which layers of a model are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hata_sglang.config.layer_ranges import format_layers
from hata_sglang.errors import Refusal


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
        If no layer sees the whole context.
    """
    config = text_config(hf_config)
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
