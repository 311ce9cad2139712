"""What each layer of one model does, after every default and override."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hata_sglang.config.budget import Budget
from hata_sglang.methods import methods


@dataclass(frozen=True)
class LayerPlan:
    """What one layer of a model does, with every default and override applied.

    Attributes
    ----------
    layer : int
        Number of the layer, from 0.
    dense : bool
        Attends to everything. Then method, weights, seed and budget are None and the
        numbers are 0.
    method : str or None
        Name of the `Method` that chooses tokens.
    bits : int or None
        Bits per code; 0 where no codes are kept. None where the YAML
        leaves it to the weights' card, until `load_encoders` (`hata_sglang.weights.encoders`) has
        read it.
    weights : str or None
        Absolute path or shipped name of the hash weights; only for trained methods.
    seed : int or None
        Only for methods that draw their weights.
    budget : Budget or None
        Tokens attended per KV head.
    sink, recent : int
        First and last tokens that are always kept; `recent` counts the current token.
    scale_bits : int
        Bits of the scale kept beside each code, as the weights say; 0 for none.
    left_out : str
        ``mean``: the mean of the values left out is mixed into the output; ``none``; or ``auto``,
        which `load_encoders` decides by the set.
    """

    layer: int
    dense: bool
    method: str | None = None
    bits: int | None = 0
    weights: str | None = None
    seed: int | None = None
    budget: Budget | None = None
    sink: int = 0
    recent: int = 0
    scale_bits: int = 0
    left_out: Literal["auto", "mean", "none"] = "none"

    @property
    def ranks(self) -> Literal["codes", "scores", "positions"] | None:
        """What tokens are ranked by; None where the layer is dense."""
        return None if self.method is None else methods()[self.method].ranks

    @property
    def code_bytes(self) -> int:
        """Bytes kept per token and KV head beside K and V.

        Raises
        ------
        ValueError
            If the number of bits stands in a card that has not been read.
        """
        if self.bits is None:
            raise ValueError(f"bits of layer {self.layer}: expected a number, found none so far")
        return self.bits // 8 + self.scale_bits // 8
