"""The weights of an encoder: what is stored of a layer, and how it becomes an encoder again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar

import torch

from ..bits import WORD_BITS
from ..checks import FLOATS, expect, expect_tensor
from ..score.levels import SCALE_DTYPES, score_levels

if TYPE_CHECKING:
    from typing import Self  # Python 3.10 has none


class EncoderWeights:
    """Hash weights of one layer by name, and the sizes that follow from them.

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
        self.scale_step = None
        if scale_bits:
            self.scale_step = step = take(self._tensors, "scale_step", num_kv_heads)
            expect(bool((step > 0).all()), "scale_step", "positive numbers", step.tolist())

    @property
    def words(self) -> int:
        """int32 words per code: ``bits // 32``."""
        return self.bits // WORD_BITS

    @property
    def levels(self) -> int:
        """Values that a score can take (`hata_kernels.score.score_levels`)."""
        return score_levels(self.plane_weights, self.bits, self.scale_bits)

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
    ) -> Self:
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

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
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

    def expect_like(self, other: EncoderWeights) -> None:
        """Check that another encoder differs in nothing but the numbers of its tensors.

        Raises
        ------
        ValueError
            When it is of another class, or has other tensors, sizes or options.
        """
        expect(type(other) is type(self), "encoder", type(self).__name__, type(other).__name__)
        for name, value in vars(self).items():
            wanted, found = _without_numbers(value), _without_numbers(vars(other).get(name))
            expect(found == wanted, name.strip("_"), wanted, found)

    def take_over(self, other: Self) -> None:
        """Copy the numbers of another encoder into this one's tensors, which stay where they are.

        So captured graphs and compiled steps, which know their addresses, read the new ones. What
        was made of the weights when the encoder was made is copied with them.

        Parameters
        ----------
        other : EncoderWeights
            Of the same device and dtype.

        Raises
        ------
        ValueError
            As `expect_like`; nothing has been copied then.
        """
        self.expect_like(other)
        for own, new in zip(_held(vars(self)), _held(vars(other)), strict=True):
            own.copy_(new)

    def shard(self, kv_heads: range) -> Self:
        """Return the encoder of some of the KV heads, and of their query heads.

        Parameters
        ----------
        kv_heads : range
            Of this encoder's, without gaps.
        """
        # The first dimension of every weight counts KV heads, or their query heads.
        each = {name: len(tensor) // self.num_kv_heads for name, tensor in self._tensors.items()}
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


def _held(value: object) -> Iterator[torch.Tensor]:
    """Every tensor in a value: itself, or in dicts, lists and tuples."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _held(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _held(part)


def _without_numbers(value: object) -> object:
    """A value with the shape of every tensor in its place."""
    if isinstance(value, torch.Tensor):
        return list(value.shape)
    if isinstance(value, Mapping):
        return {name: _without_numbers(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_numbers(part) for part in value]
    return value


def take(tensors: Mapping[str, torch.Tensor], name: str, *shape: int | None) -> torch.Tensor:
    """Return a named weight of the given shape (None: any size).

    Raises
    ------
    ValueError
        When it is missing, of another shape, or not floating point.
    """
    expect(name in tensors, "tensors", name, ", ".join(sorted(tensors)) or "none")
    expect_tensor(name, tensors[name], shape=shape, dtypes=FLOATS)
    return tensors[name]


def expect_names(tensors: Mapping[str, torch.Tensor], *names: str) -> None:
    """Check that the weights are these and no others.

    Raises
    ------
    ValueError
        When names differ.
    """
    found = ", ".join(sorted(tensors)) or "none"
    expect(set(tensors) == set(names), "tensors", ", ".join(sorted(names)), found)


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
