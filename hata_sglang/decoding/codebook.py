"""The code book: what is kept of every cached key beside the key itself, by layer and slot."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch

from hata_kernels.encoders import Encoder
from hata_kernels.tally import SIZE as TALLY_SIZE

#: Keys that are encoded at a time where all of a layer are: what that takes beside is bounded.
PIECE = 8192


class CodeBook:
    """Codes and scales of keys, the encoders that make them, and what was counted.

    It knows no pool: whoever writes, moves or loads a key says so, with the slot. Codes are a
    function of keys, so that keys which came another way are encoded again.

    Parameters
    ----------
    encoders : mapping of int to Encoder
        By layer of the model, of those whose method keeps codes; float32, on the CPU.
    layers : iterable of int
        All sparse layers.
    slots : int
    device : torch.device or str
    dtype : torch.dtype
        Of the cached keys.

    Attributes
    ----------
    codes : dict of int to torch.Tensor
        By coded layer, int32 ``[slots, Hkv, bits // 32]``.
    scales : dict of int to torch.Tensor
        By layer that has them, uint8 or int16 (low 16 bits) ``[slots, Hkv]``.
    encoders : dict of int to Encoder
        By coded layer, on the device: in float32 on a CPU, whose reference computes so, else in the
        keys' dtype, in which projections run on tensor cores.
    tallies : dict of int to torch.Tensor
        By sparse layer, int64 ``[4]`` (`hata_kernels.tally`).
    """

    def __init__(
        self,
        encoders: Mapping[int, Encoder],
        layers: Iterable[int],
        *,
        slots: int,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        device = torch.device(device)
        make = {"device": device}
        self.codes = {
            layer: torch.zeros(slots, e.num_kv_heads, e.words, dtype=torch.int32, **make)
            for layer, e in encoders.items()
        }
        self.scales = {
            layer: torch.zeros(slots, e.num_kv_heads, dtype=e.scale_dtype, **make)
            for layer, e in encoders.items()
            if e.scale_bits
        }
        self._where = (device, torch.float32 if device.type == "cpu" else dtype)
        self.encoders = {layer: e.to(*self._where) for layer, e in encoders.items()}
        layers = list(layers)
        tallies = torch.zeros(len(layers), TALLY_SIZE, dtype=torch.int64, **make)
        self.tallies = dict(zip(layers, tallies, strict=True))

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Every buffer whose rows belong to slots."""
        yield from (*self.codes.values(), *self.scales.values())

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return sum(buffer.nbytes for buffer in self)

    def encode(self, layer: int, slots: torch.Tensor, keys: torch.Tensor) -> None:
        """Write what belongs to ``keys [T, Hkv, D]`` to ``slots [T]``; nothing without codes."""
        encoder = self.encoders.get(layer)
        if encoder is not None:
            encoder.encode_keys(
                keys.reshape(-1, encoder.num_kv_heads, encoder.head_dim),
                codes=self.codes[layer],
                slots=slots,
                scales=self.scales.get(layer),
                tally=self.tallies[layer],
            )

    def reencode(self, layer: int, slots: torch.Tensor, cache: torch.Tensor) -> None:
        """Encode the keys that lie in ``slots [T]`` of a layer's ``cache [slots, Hkv, D]``."""
        if layer in self.encoders:
            self.encode(layer, slots, cache[slots])

    def replace(self, layer: int, encoder: Encoder, cache: torch.Tensor) -> None:
        """Give a layer other weights, in place, and encode all keys that it has again.

        The keys are not counted: they had codes.

        Parameters
        ----------
        layer : int
        encoder : Encoder
            Like the layer's own (`Encoder.expect_like`); float32, on the CPU.
        cache : torch.Tensor
            ``[slots, Hkv, D]``, the layer's keys.

        Raises
        ------
        ValueError
            If the encoder is of another kind; nothing has been changed then.
        """
        own = self.encoders[layer]
        own.take_over(encoder.to(*self._where))
        every = torch.arange(len(cache), device=cache.device)
        for keys, slots in zip(cache.split(PIECE), every.split(PIECE), strict=True):
            beside = {"codes": self.codes[layer], "scales": self.scales.get(layer)}
            own.encode_keys(keys, slots=slots, **beside)

    def move(self, targets: torch.Tensor, sources: torch.Tensor) -> None:
        """Follow keys that moved from ``sources [T]`` to ``targets [T]``, in every layer."""
        for buffer in self:
            buffer[targets] = buffer[sources]
