"""What all coded methods share: keys and queries become bits, bits become codes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch

from ..bits import WORD_BITS, pack_bits
from ..checks import expect
from ..score.levels import SCALE_DTYPES
from ..tally import count_encoded
from .checks import check_heads, check_keys, take

if TYPE_CHECKING:
    from ..encode.triton_step import StepScratch


class Encoder(ABC):
    """Encoder of one layer: its hash weights and what they make of keys and queries.

    A key becomes r bits per KV head, and with ``scale_bits`` a small integer, its scale. A query
    becomes P planes of r bits per KV head. A token's score is a weighted sum over the planes of
    the bits that agree with the key's (`hata_kernels.score.score_naive`).

    Parameters
    ----------
    tensors : mapping of str to torch.Tensor
        The weights by name, as `tensors` returns them; floating point.
    num_kv_heads, group, head_dim : int
        KV heads, query heads per KV head (G), head size (D).
    bits : int
        r, bits per token and KV head, a multiple of 32.
    plane_weights : tuple of int
        What an agreeing bit of each of the P query planes counts.
    scale_bits : int
        Bits of the scale that is stored with every key: 0 (none), 8 or 16.

    Raises
    ------
    ValueError
        When a tensor or an option does not fit.
    """

    method: ClassVar[str]
    OPTIONS: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        *,
        num_kv_heads: int,
        group: int,
        head_dim: int,
        bits: int,
        plane_weights: tuple[int, ...],
        scale_bits: int = 0,
    ) -> None:
        expect(bits > 0 and bits % WORD_BITS == 0, "bits", "a multiple of 32", bits)
        expect(scale_bits in (0, *SCALE_DTYPES), "scale_bits", "0, 8 or 16", scale_bits)
        self.num_kv_heads, self.group, self.head_dim = num_kv_heads, group, head_dim
        self.bits, self.plane_weights, self.scale_bits = bits, plane_weights, scale_bits
        self._tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        if scale_bits:
            step = take(self._tensors, "scale_step", num_kv_heads)
            expect(bool((step > 0).all()), "scale_step", "positive numbers", step.tolist())

    @property
    def words(self) -> int:
        """int32 words per code: ``bits // 32``."""
        return self.bits // WORD_BITS

    @property
    def code_bytes(self) -> int:
        """Bytes that a token takes per KV head, its scale included."""
        return self.bits // 8 + self.scale_bits // 8

    @property
    def scale_dtype(self) -> torch.dtype | None:
        """Dtype of the buffer of scales: uint8, int16 (holds the low 16 bits), or None."""
        return SCALE_DTYPES.get(self.scale_bits)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(iter(self._tensors.values())).device

    def bytes_in(self, dtype: torch.dtype) -> int:
        """Bytes that the copy takes which `to` makes in a dtype."""
        return sum(
            tensor.numel() * (dtype.itemsize if name.endswith("weight") else 4)
            for name, tensor in self._tensors.items()
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what is stored: the weights by name, in float32."""
        return {name: tensor.float() for name, tensor in self._tensors.items()}

    def options(self) -> dict[str, int | float]:
        """Return the keyword arguments, beside the shape, that `from_tensors` needs."""
        return {name: getattr(self, name) for name in self.OPTIONS}

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, torch.Tensor],
        *,
        num_kv_heads: int,
        group: int,
        head_dim: int,
        **options: int | float,
    ) -> Encoder:
        """Make an encoder of stored weights.

        Parameters
        ----------
        tensors : mapping of str to torch.Tensor
            As `tensors` returns them.
        num_kv_heads, group, head_dim : int
            KV heads, query heads per KV head, head size.
        **options
            As `options` returns them; those left out take the class's defaults.

        Raises
        ------
        ValueError
            When a tensor is missing, not known or of another shape, or an option does not fit.
        """
        expect(
            set(options) <= set(cls.OPTIONS),
            f"options of {cls.__name__}",
            "some of " + (", ".join(cls.OPTIONS) or "none"),
            ", ".join(sorted(options)),
        )
        return cls(tensors, num_kv_heads=num_kv_heads, group=group, head_dim=head_dim, **options)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Encoder:
        """Return a copy on a device whose projection weights have the given dtype.

        Parameters
        ----------
        device : torch.device or str
        dtype : torch.dtype
            float32 on the CPU; on a GPU that of q and k, so that the tensor cores are used. Biases
            and scale steps stay float32.
        """
        tensors = {
            name: tensor.to(device, dtype if name.endswith("weight") else torch.float32)
            for name, tensor in self._tensors.items()
        }
        return type(self).from_tensors(
            tensors,
            num_kv_heads=self.num_kv_heads,
            group=self.group,
            head_dim=self.head_dim,
            **self.options(),
        )

    def shard(self, kv_heads: range) -> Encoder:
        """Return the encoder of some of the KV heads, and of their query heads.

        Parameters
        ----------
        kv_heads : range
            Of this encoder's, without gaps.
        """
        # The first dimension of every weight counts KV heads, or their query heads.
        each = {name: len(t) // self.num_kv_heads for name, t in self._tensors.items()}
        return type(self).from_tensors(
            {
                name: tensor[kv_heads.start * each[name] : kv_heads.stop * each[name]]
                for name, tensor in self._tensors.items()
            },
            num_kv_heads=len(kv_heads),
            group=self.group,
            head_dim=self.head_dim,
            **self.options(),
        )

    def key_bits(self, k: torch.Tensor) -> torch.Tensor:
        """Return the bits of keys ``[T, Hkv, D]``: bool ``[T, Hkv, r]``, computed in float32."""
        check_heads(self, "k", k, self.num_kv_heads)
        return self._keys(k)[0]

    def key_scales(self, k: torch.Tensor) -> torch.Tensor | None:
        """Return the scales of keys ``[T, Hkv, D]``: int32 ``[T, Hkv]``; None without scales.

        A scale is a real number ``m`` of the key, stored as ``floor(m / scale_step[h] + 1/2)``,
        at most ``2**scale_bits - 1``.
        """
        check_heads(self, "k", k, self.num_kv_heads)
        return self._keys(k)[1]

    def query_bits_of(self, q: torch.Tensor) -> torch.Tensor:
        """Return the planes of queries ``[T, Hq, D]``: bool ``[T, Hkv, P, r]``, in float32."""
        check_heads(self, "q", q, self.num_kv_heads * self.group)
        return self._queries(q)

    def encode_keys(
        self,
        k: torch.Tensor,
        *,
        codes: torch.Tensor,
        slots: torch.Tensor,
        scales: torch.Tensor | None = None,
        tally: torch.Tensor | None = None,
    ) -> None:
        """Write the codes of new keys, and their scales, to their slots.

        Parameters
        ----------
        k : torch.Tensor
            ``[T, Hkv, D]``, floating point; on CUDA its last dimension is contiguous.
        codes : torch.Tensor
            int32 ``[S, Hkv, words]``, contiguous.
        slots : torch.Tensor
            int64 or int32 ``[T]``: token t is written to ``codes[slots[t]]``.
        scales : torch.Tensor, optional
            ``[S, Hkv]``, contiguous, of dtype `scale_dtype`; needed with ``scale_bits`` and only
            then. int16 holds the low 16 bits of a number of 0 to 65535.
        tally : torch.Tensor, optional
            See `hata_kernels.tally`: counts the keys.

        Raises
        ------
        ValueError
            When a shape, dtype or device does not fit.
        """
        check_keys(self, k, codes, slots, scales, tally)
        self._write_keys(k, codes, slots, scales, tally)

    def _write_keys(self, k, codes, slots, scales, tally) -> None:
        """As `encode_keys`, of checked arguments."""
        write = self._launch_keys if k.is_cuda else self._store_keys
        write(k, codes, slots, scales, tally)

    def _store_keys(self, k, codes, slots, scales, tally) -> None:
        """As `encode_keys`, by PyTorch on any device."""
        count_encoded(tally, slots)
        bits, values = self._keys(k)
        codes.index_copy_(0, slots.long(), pack_bits(bits))
        if scales is not None:
            # Integers keep the low bits that the dtype has room for.
            scales.index_copy_(0, slots.long(), values.to(scales.dtype))

    def encode_queries(self, q: torch.Tensor) -> torch.Tensor:
        """Return the packed planes of queries ``[T, Hq, D]``: int32 ``[T, Hkv * P, words]``.

        Plane p of KV head h is row ``h * P + p``. On CUDA the last dimension of q is contiguous.

        Raises
        ------
        ValueError
            When a shape or dtype does not fit.
        """
        check_heads(self, "q", q, self.num_kv_heads * self.group)
        return self._make_planes(q)

    def _make_planes(self, q: torch.Tensor) -> torch.Tensor:
        """As `encode_queries`, of checked queries."""
        return self._launch_queries(q) if q.is_cuda else self._pack_queries(q)

    def _pack_queries(self, q: torch.Tensor) -> torch.Tensor:
        return pack_bits(self._queries(q)).flatten(1, 2)

    def encode_step(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        *,
        codes: torch.Tensor,
        slots: torch.Tensor,
        scales: torch.Tensor | None = None,
        scratch: StepScratch | None = None,
        tally: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Encode a decode step: `encode_keys` of ``k``, and what `encode_queries` of ``q`` returns.

        On CUDA one launch where the method allows, so that neither may count on the other's
        result being there.

        Parameters
        ----------
        q, k : torch.Tensor
            ``[T, Hq, D]`` and ``[T, Hkv, D]``, of one dtype.
        codes, slots, scales, tally : torch.Tensor
            See `encode_keys`.
        scratch : hata_kernels.encode.triton_step.StepScratch, optional
            What `step_scratch` made, for at least T tokens.

        Raises
        ------
        ValueError
            As `encode_keys` and `encode_queries`.
        """
        check_heads(self, "q", q, self.num_kv_heads * self.group)
        check_keys(self, k, codes, slots, scales, tally)
        expect(q.shape[0] == k.shape[0], "q.shape[0]", k.shape[0], q.shape[0])
        expect(q.dtype == k.dtype, "q.dtype", k.dtype, q.dtype)
        if q.is_cuda:
            return self._launch_step(q, k, codes, slots, scales, scratch, tally)
        self._write_keys(k, codes, slots, scales, tally)
        return self._make_planes(q)

    def step_scratch(self, tokens: int) -> StepScratch | None:
        """Scratch of `encode_step` for up to so many tokens; None where it needs none."""
        return None

    def scratch_bytes(self, tokens: int) -> int:
        """Bytes of `step_scratch`."""
        return 0

    def _launch_step(self, q, k, codes, slots, scales, scratch, tally) -> torch.Tensor:
        """As `encode_step` on a GPU."""
        self._launch_keys(k, codes, slots, scales, tally)
        return self._launch_queries(q)

    def _whole_scales(self, size: torch.Tensor) -> torch.Tensor:
        """Round sizes of keys ``[T, Hkv]`` to whole steps, int32: see `key_scales`."""
        steps = (size / self._tensors["scale_step"] + 0.5).floor()
        return steps.clamp(0, 2**self.scale_bits - 1).int()

    @abstractmethod
    def _keys(self, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Bits and scales of checked keys, in float32 PyTorch."""

    @abstractmethod
    def _queries(self, q: torch.Tensor) -> torch.Tensor:
        """Planes of checked queries, in float32 PyTorch."""

    def _launch_keys(self, k, codes, slots, scales, tally=None) -> None:
        """As `encode_keys` on a GPU: a method without kernels of its own has PyTorch's."""
        self._store_keys(k, codes, slots, scales, tally)

    def _launch_queries(self, q: torch.Tensor) -> torch.Tensor:
        """As `encode_queries` on a GPU, likewise."""
        return self._pack_queries(q)


def project(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Multiply rows by the weight of their KV head, in float32.

    Parameters
    ----------
    x : torch.Tensor
        ``[T, H, n]``, floating point, H a multiple of the KV heads: head h uses the weight of KV
        head ``h // (H // kv_heads)``.
    weight : torch.Tensor
        ``[kv_heads, n, m]``.
    bias : torch.Tensor, optional
        ``[kv_heads, m]``.

    Returns
    -------
    torch.Tensor
        float32 ``[T, H, m]``; a transposed view when H is the number of KV heads.
    """
    kv_heads = weight.shape[0]
    # [kv_heads, T, G, n]: one product per KV head, whatever the group size.
    heads = x.unflatten(1, (kv_heads, x.shape[1] // kv_heads)).transpose(0, 1)
    rows = torch.bmm(heads.flatten(1, 2).float(), weight.float())
    if bias is not None:
        rows += bias.float().unsqueeze(1)
    return rows.unflatten(1, heads.shape[1:3]).transpose(0, 1).flatten(1, 2)
