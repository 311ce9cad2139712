"""The card of a set of hash weights: what it is for, where it comes from, and how good it is."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hata_kernels.attend import RATIOS
from hata_sglang.config.layer_ranges import MAX_LAYER
from hata_sglang.shape import AttentionShape

TENSORS_FILE = "hash.safetensors"
CARD_FILE = "card.json"
CARD_VERSION = 2
#: Name of a layer's weights of the mean of the values left out, in the file of the tensors.
LEFT_OUT = "left_out"

Scalar = str | int | float | bool
# Bounds for what strangers write: each size of a tensor, and what is gone through layer by layer.
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Name = Annotated[str, Field(max_length=255)]
Layer = Annotated[int, Field(ge=0, le=MAX_LAYER)]
Shape = Annotated[tuple[Count, ...], Field(min_length=1, max_length=8)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Fingerprint(_Frozen):
    """What must agree between the model that was trained on and the one that is served."""

    model_type: str
    hidden_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count
    head_dim: Count
    vocab_size: Count
    rope_theta: float | None

    @property
    def shape(self) -> AttentionShape:
        """Heads of the model and their size."""
        return AttentionShape(self.num_attention_heads, self.num_key_value_heads, self.head_dim)

    @classmethod
    def of(cls, hf_config: Any) -> Fingerprint:
        """Read the fingerprint off a transformers config.

        Parameters
        ----------
        hf_config : transformers.PretrainedConfig
            Of the language model, or of a multimodal model that contains one.
        """
        get_text_config = getattr(hf_config, "get_text_config", None)
        config = get_text_config() if get_text_config else hf_config
        heads = config.num_attention_heads
        return cls(
            model_type=config.model_type,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=heads,
            num_key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            vocab_size=config.vocab_size,
            rope_theta=_rope_theta(config),
        )


def _rope_theta(config: Any) -> float | None:
    # transformers 5 moved it into `rope_parameters`, per layer type for some models.
    parameters = getattr(config, "rope_parameters", None) or {}
    theta = parameters.get("rope_theta", getattr(config, "rope_theta", None))
    if theta is None and isinstance(parameters.get("full_attention"), dict):
        theta = parameters["full_attention"].get("rope_theta")
    return None if theta is None else float(theta)


class HeldOut(_Frozen):
    """What selections of one budget are worth on held-out texts, means over queries and KV heads.

    Masses are those of the attention that they keep, errors those of its output, relative to the
    output's norm.
    """

    budget: int
    sink: int
    recent: int
    mean: dict[str, float] = Field(description="selector -> mean over the layers")
    per_layer: dict[str, dict[int, float]] = Field(description="selector -> layer -> mass")
    output_error: dict[str, float] = Field({}, description="selector -> mean over the layers")
    output_error_per_layer: dict[str, dict[int, float]] = Field(
        {}, description="selector -> layer -> error"
    )


class TrainingData(_Frozen):
    """What the weights were trained, chosen and measured on.

    `files` name their SHA-256. A split that has sequences and no files was a part of `files`.
    """

    description: str
    files: dict[str, str] = Field(description="file name -> SHA-256")
    sequences: int
    tokens: int
    validation_files: dict[str, str] = {}
    validation_sequences: int = 0
    validation_tokens: int = 0
    held_out_files: dict[str, str] = {}
    held_out_sequences: int = 0
    held_out_tokens: int = 0
    # The default is what was true of every set made before the card had this field.
    step_chosen_on: Literal["validation", "held_out", "nothing"] = Field(
        "held_out",
        description="texts whose attention mass chose every layer's training step; with held_out "
        "the card's held-out masses are flattered",
    )

    @property
    def deciding_files(self) -> dict[str, str]:
        """Files that decided the weights, by training or by choosing the step."""
        chosen = {"validation": self.validation_files, "held_out": self.held_out_files}
        return self.files | chosen.get(self.step_chosen_on, {})


class Versioned(BaseModel):
    """What every version of the card has."""

    version: int = CARD_VERSION


class Card(_Frozen):
    """Where a set of hash weights comes from, and how good it is."""

    version: int = CARD_VERSION
    name: Name
    model: Name
    fingerprint: Fingerprint
    revision: str = Field(description="SHA-256 of the model's weights file, with its kind")
    method: str = Field(description="name of a method")
    bits: Count = Field(description="per token and KV head")
    options: dict[str, Scalar] = Field(description="of the encoder, beside its tensors")
    layers: tuple[Layer, ...] = Field(min_length=1, max_length=MAX_LAYER + 1)
    shapes: dict[Name, Shape] = Field(
        min_length=1, max_length=32, description="tensor -> shape, in every layer"
    )
    left_out: bool = Field(
        False, description="whether layers have weights of the mean of the values left out"
    )
    training_data: TrainingData
    seed: int
    recipe: dict[str, Scalar] = Field(description="every option that changes the weights")
    held_out: tuple[HeldOut, ...]
    sha256: str = Field(description=f"of {TENSORS_FILE}")
    created_by: dict[str, str] = Field(description="versions of what made the weights")

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor in the weights' file, by its name there."""
        shapes = self.shapes
        if self.left_out:
            shapes = shapes | {LEFT_OUT: (self.fingerprint.num_attention_heads, RATIOS)}
        return {
            f"layers.{layer}.{name}": shape
            for layer in self.layers
            for name, shape in shapes.items()
        }
