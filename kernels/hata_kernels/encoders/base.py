"""What all coded methods share: keys and queries become bits, bits become codes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

import torch

from ..bits import pack_bits
from ..checks import FLOATS, INTEGERS, expect, expect_tensor
from ..score.distance import distance_bucket
from ..score.levels import scaled_scores
from ..tally import check_tally, count_encoded
from .weights import EncoderWeights

if TYPE_CHECKING:
    from ..encode.triton_step import StepScratch


class Queries(NamedTuple):
    """Queries as keys are scored for them.

    Attributes
    ----------
    codes : torch.Tensor
        int32 ``[T, Hkv * P, words]``: their packed planes; plane p of KV head h is row
        ``h * P + p``.
    bias : torch.Tensor or None
        int32 ``[T, Hkv, DISTANCES]``, none above 0: what scores gain by distance
        (`hata_kernels.score.distance`); None without such a bias.
    """

    codes: torch.Tensor
    bias: torch.Tensor | None = None


class Encoder(EncoderWeights, ABC):
    """Encoder of one layer: its hash weights and what they make of keys and queries.

    A key becomes r bits per KV head, and with ``scale_bits`` a small integer, its scale. A query
    becomes P planes of r bits per KV head. A token's score is a weighted sum over the planes of
    the bits that agree with the key's (`hata_kernels.score.score_naive`).

    Parameters are those of `EncoderWeights`.
    """

    #: ``[Hkv, DISTANCES]``, what `Queries.bias` is made of, where there is one.
    score_bias: torch.Tensor | None = None

    def key_bits(self, k: torch.Tensor) -> torch.Tensor:
        """Return the bits of keys ``[T, Hkv, D]``: bool ``[T, Hkv, r]``, computed in float32."""
        self._check_key_numbers(k)
        return self._keys(k)[0]

    def key_scales(self, k: torch.Tensor) -> torch.Tensor | None:
        """Return the scales of keys ``[T, Hkv, D]``: int32 ``[T, Hkv]``; None without scales.

        A scale is a real number ``m`` of the key, stored as ``floor(m / scale_step[h] + 1/2)``,
        at most ``2**scale_bits - 1``.
        """
        self._check_key_numbers(k)
        return self._keys(k)[1]

    def query_bits_of(self, q: torch.Tensor) -> torch.Tensor:
        """Return the planes of queries ``[T, Hq, D]``: bool ``[T, Hkv, P, r]``, in float32."""
        self._check_queries(q)
        return self._queries(q)[0]

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
        self._check_keys(k, codes, slots, scales, tally)
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

    def encode_queries(self, q: torch.Tensor) -> Queries:
        """Encode queries ``[T, Hq, D]``. On CUDA their last dimension is contiguous.

        Raises
        ------
        ValueError
            When a shape or dtype does not fit.
        """
        self._check_queries(q)
        return self._launch_queries(q) if q.is_cuda else self._pack_queries(q)

    def _pack_queries(self, q: torch.Tensor) -> Queries:
        planes, bias = self._queries(q)
        return Queries(pack_bits(planes).flatten(1, 2), bias)

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
    ) -> Queries:
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
        self._check_queries(q)
        self._check_keys(k, codes, slots, scales, tally)
        expect(q.shape[0] == k.shape[0], "q.shape[0]", k.shape[0], q.shape[0])
        expect(q.dtype == k.dtype, "q.dtype", k.dtype, q.dtype)
        if q.is_cuda:
            return self._launch_step(q, k, codes, slots, scales, scratch, tally)
        self._store_keys(k, codes, slots, scales, tally)
        return self._pack_queries(q)

    def step_scratch(self, tokens: int, device: torch.device | None = None) -> StepScratch | None:
        """Scratch of `encode_step` for up to so many tokens; None where it needs none.

        On the device of the weights, where none is given.
        """
        return None

    def _check_queries(self, q: torch.Tensor) -> None:
        shape = (None, self.num_kv_heads * self.group, self.head_dim)
        expect_tensor("q", q, shape=shape, dtypes=FLOATS, device=self.device)

    def _check_keys(self, k, codes, slots, scales, tally) -> None:
        """Check keys and what is written of them: the arguments of `encode_keys`."""
        self._check_key_numbers(k)
        where = {"device": k.device, "contiguous": True}
        shape = (None, self.num_kv_heads, self.words)
        expect_tensor("codes", codes, shape=shape, dtypes=(torch.int32,), **where)
        expect_tensor("slots", slots, shape=k.shape[:1], dtypes=INTEGERS, **where)
        dtype = self.scale_dtype
        if dtype is None:
            expect(scales is None, "scales", "None, because scale_bits is 0", "a tensor")
        else:
            expect(scales is not None, "scales", f"{dtype} [S, Hkv]", None)
            expect_tensor("scales", scales, shape=codes.shape[:2], dtypes=(dtype,), **where)
        check_tally(tally, k.device)

    def _check_key_numbers(self, k: torch.Tensor) -> None:
        shape = (None, self.num_kv_heads, self.head_dim)
        expect_tensor("k", k, shape=shape, dtypes=FLOATS, device=self.device)

    def _launch_step(self, q, k, codes, slots, scales, scratch, tally) -> Queries:
        """As `encode_step` on a GPU."""
        self._launch_keys(k, codes, slots, scales, tally)
        return self._launch_queries(q)

    def _whole_scales(self, size: torch.Tensor) -> torch.Tensor:
        """Round sizes of keys ``[T, Hkv]`` to whole steps, int32: see `key_scales`."""
        steps = (size / self.scale_step + 0.5).floor()
        return steps.clamp(0, 2**self.scale_bits - 1).int()

    @abstractmethod
    def _keys(self, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Bits and scales of checked keys, in float32 PyTorch."""

    @abstractmethod
    def _queries(self, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Planes of checked queries and their bias by distance, in float32 PyTorch."""

    def _launch_keys(self, k, codes, slots, scales, tally=None) -> None:
        """As `encode_keys` on a GPU: a method without kernels of its own has PyTorch's."""
        self._store_keys(k, codes, slots, scales, tally)

    def _launch_queries(self, q: torch.Tensor) -> Queries:
        """As `encode_queries` on a GPU, likewise."""
        return self._pack_queries(q)


def dense_scores(
    encoder: Encoder, q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """Score every key for every query: the integers that serving ranks by, before sink and recent.

    Parameters
    ----------
    encoder : Encoder
    q : torch.Tensor
        ``[N, Hq, D]``.
    k : torch.Tensor
        ``[S, Hkv, D]``.
    positions : torch.Tensor
        ``[N]`` int64: query n is token ``positions[n]``. A key beyond it has the distance 0.

    Returns
    -------
    torch.Tensor
        float32 ``[Hkv, N, S]``, whole numbers. Every intermediate is exact, so results are equal,
        not close, to those of encoding and scoring the same inputs on the CPU.

    Raises
    ------
    ValueError
        When a shape, dtype or device does not fit.
    """
    weights = torch.tensor(encoder.plane_weights, dtype=torch.float32, device=q.device)
    encoder._check_queries(q)
    planes, bias = encoder._queries(q)
    queries = ((planes.float() * 2 - 1) * weights.view(-1, 1)).sum(dim=2).transpose(0, 1)
    bits, scales = encoder.key_bits(k), encoder.key_scales(k)
    keys = bits.float() * 2 - 1
    # Integers below 2**24 in float32: the products are exact, also in tf32 (8-bit factors).
    signed = torch.bmm(queries, keys.permute(1, 2, 0))
    full = encoder.bits * sum(encoder.plane_weights)
    if scales is None:
        scores = (signed + full) / 2
    else:
        scales = scales.T.unsqueeze(1)
        scores = scaled_scores(signed.int(), scales, full, encoder.scale_bits).float()
    if bias is None:
        return scores
    distance = (positions[:, None] - torch.arange(len(k), device=k.device)).clamp_min(0)
    bucket = distance_bucket(distance).long().expand_as(scores)
    return (scores + bias.transpose(0, 1).gather(2, bucket)).clamp_min(0)
