"""What a method says about itself; everything else in the package asks here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from hata_kernels.encoders import Encoder
from hata_sglang.errors import Refusal

#: Bits of a word of code, and the most that the codes of any method have.
WORD_BITS, MAX_BITS = 32, 1024


class Recipe(Protocol):
    """Options of training: a frozen dataclass, whose fields ``--option`` sets.

    `steps` is 0 where the trainer has the encoder when it is made.
    """

    steps: int

    def card_entry(self) -> dict[str, Any]:
        """What the card records."""


class LayerTrainer(Protocol):
    """Trains the encoder of one layer."""

    def step(self) -> torch.Tensor:
        """Take one step and return its loss."""

    def encoder(self) -> Encoder:
        """The encoder as it is now, float32, a copy."""


@dataclass(frozen=True)
class Method:
    """A way to choose the tokens that a sparse layer attends to.

    A file of `hata_sglang.methods`, or a package's entry point in the group
    ``hata_sglang.methods``, holds one under the name ``METHOD`` (docs/adding-a-method.md).

    Attributes
    ----------
    name : str
        In the YAML, in cards and on command lines.
    ranks : {"codes", "scores", "positions"}
        By a code beside every key, by the true attention scores, or not at all: the first and
        last tokens.
    summary : str
        What it is, in a few words.
    paper : str
        Link to where it comes from.
    encoder : type of Encoder, optional
        What makes codes of keys and queries; needed for codes and only there.
    tensors : callable, optional
        Of a method without training: makes the encoder's weights of a generator (from the YAML's
        ``seed``), ``bits``, ``num_kv_heads``, ``group`` and ``head_dim``. None: weights are read
        from a set that was trained.
    seeded : bool
        Whether `tensors` draws numbers, so that the YAML may give a seed.
    recipe, trainer : type, optional
        What trains a set: `Recipe` and `LayerTrainer`; a trainer is made of a layer's captures
        (list of `SequenceData`), bits, recipe and seed.
    default_bits, max_bits : int
        Bits per token and KV head.
    bits_per_query_head : int, optional
        Where each query head of a group has bits of its own: their number, which fixes the sum.

    Raises
    ------
    ValueError
        If it has codes and no encoder, or the other way round.
    """

    name: str
    ranks: Literal["codes", "scores", "positions"]
    summary: str
    paper: str = ""
    encoder: type[Encoder] | None = None
    tensors: Callable[..., dict[str, torch.Tensor]] | None = None
    seeded: bool = False
    recipe: type | None = None
    trainer: Callable[..., LayerTrainer] | None = None
    default_bits: int = 128
    max_bits: int = 256
    bits_per_query_head: int | None = None

    def __post_init__(self) -> None:
        if (self.ranks == "codes") != (self.encoder is not None):
            raise ValueError(f"method {self.name}: expected an encoder for codes and only for them")

    @property
    def coded(self) -> bool:
        """Whether a code is kept beside every key."""
        return self.encoder is not None

    @property
    def trained(self) -> bool:
        """Whether its codes come from trained weights."""
        return self.coded and self.tensors is None

    @property
    def trainable(self) -> bool:
        """Whether `hata-sglang train` can make its weights."""
        return self.trainer is not None

    def resolve_bits(self, bits: int | None, group: int) -> int:
        """Bits per token and KV head to train.

        Parameters
        ----------
        bits : int or None
            As asked for; None stands for the method's own number.
        group : int
            Query heads per KV head.

        Raises
        ------
        Refusal
            If `bits` fills no words, or the method leaves no choice and it is another number.
        """
        if own := self.bits_per_query_head:
            if bits not in (None, own * group):
                expected = f"{own * group}, {own} for each of the {group} query heads of a KV head"
                raise Refusal.of("bits", expected, str(bits))
            return own * group
        bits = self.default_bits if bits is None else bits
        if bits < WORD_BITS or bits % WORD_BITS:
            raise Refusal.of("bits", f"a positive multiple of {WORD_BITS}", str(bits))
        return bits

    def untrained_encoder(
        self, bits: int, *, seed: int, layer: int, num_kv_heads: int, group: int, head_dim: int
    ) -> Encoder:
        """The encoder of a layer of a method without training, the same in every process.

        Parameters
        ----------
        bits : int
        seed : int
            Another one for each layer is made of it.
        layer, num_kv_heads, group, head_dim : int

        Returns
        -------
        Encoder
            Float32, on the CPU.
        """
        # The generator takes 32 bits of a seed, and refuses a number of more than 64.
        generator = torch.Generator().manual_seed((seed * 100_003 + layer) % 2**32)
        sizes = {"num_kv_heads": num_kv_heads, "group": group, "head_dim": head_dim}
        return self.encoder.from_tensors(self.tensors(generator, bits=bits, **sizes), **sizes)
