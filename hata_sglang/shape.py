"""The shape of a model's attention."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AttentionShape:
    """The numbers of a model's attention that codes and kernels depend on.

    Attributes
    ----------
    num_heads, num_kv_heads, head_dim : int
        Query heads, KV heads, head size.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def sizes(self) -> dict[str, int]:
        """As `hata_kernels.encoders.Encoder.from_tensors` takes them."""
        return {
            "num_kv_heads": self.num_kv_heads,
            "group": self.group,
            "head_dim": self.head_dim,
        }


@dataclass(frozen=True)
class ModelShape(AttentionShape):
    """A model's attention, layers and longest context.

    Attributes
    ----------
    num_layers : int
    context_len : int
        In tokens.
    """

    num_layers: int
    context_len: int
