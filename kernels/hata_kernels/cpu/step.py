"""The sparse layers of a decode step on a CPU: one compiled call ranks their tokens and attends."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from ..attend import LeftOut
from ..checks import INTEGERS, expect, expect_lengths, expect_tensor
from ..encoders import AsymmetricEncoder, Encoder, LinearEncoder
from ..score.levels import full_score, score_levels, score_shift
from ..tally import check_tally
from .compiling import KINDS, MISFIT_ERRORS
from .step_kernels import ASYMMETRIC, BAD_SLOT, DONE, GIVEN, LINEAR, decode_layer

_NO_SCALES, _NO_NUMBERS = np.empty((0, 0), np.uint8), np.empty((0, 0, 0), np.uint16)
_NO_PLANES, _NO_TALLY = np.empty((0, 0, 0, 0), np.int32), np.empty(0, np.int64)
_NO_MATRIX, _NO_ROWS = np.empty((0, 0, 0), np.float32), np.empty((0, 0), np.float32)
_NO_STEPS, _NO_BIASES = np.empty(0, np.float32), np.empty((0, 0, 0), np.int32)
_NO_MEAN = (_NO_MATRIX, np.empty(0, np.int64), _NO_ROWS)


class Rows:
    """Requests of one decode step, as layers of one budget and number of KV heads take them.

    Parameters
    ----------
    token_slots : torch.Tensor
        int32 ``[bs, width]``, contiguous; row b lists the slots of request b in position order.
    seq_lens : torch.Tensor
        int32 or int64 ``[bs]``: tokens of each request, the current one included; 1 to width.
    budgets : torch.Tensor
        int32 ``[bs]``, contiguous, at least 1: tokens that a request keeps per KV head.
    kv_heads : int

    Attributes
    ----------
    selected : torch.Tensor
        int32 ``[bs, kv_heads, largest budget]``: what the last layer selected, as `rank_naive` has
        it.
    planes : numpy.ndarray
        int32 ``[bs, kv_heads, P, words]``: what that layer's queries became.
    biases : numpy.ndarray
        int32 ``[bs, kv_heads, DISTANCES]``, their bias by distance; of no columns without.

    Raises
    ------
    ValueError
        When a shape, dtype, device, length or budget does not fit.
    """

    def __init__(
        self,
        token_slots: torch.Tensor,
        seq_lens: torch.Tensor,
        budgets: torch.Tensor,
        kv_heads: int,
    ):
        cpu = torch.device("cpu")
        where = {"device": cpu, "contiguous": True}
        expect_tensor(
            "token_slots", token_slots, shape=(None, None), dtypes=(torch.int32,), **where
        )
        batch, width = token_slots.shape
        expect_tensor("seq_lens", seq_lens, shape=(batch,), dtypes=INTEGERS, device=cpu)
        lengths = expect_lengths("seq_lens", seq_lens, width)
        expect_tensor("budgets", budgets, shape=(batch,), dtypes=(torch.int32,), **where)
        kept = budgets.tolist()
        expect(min(kept) >= 1, "budgets", "at least 1", kept)
        self.selected = torch.empty(batch, kv_heads, max(kept), dtype=torch.int32)
        self.selected_array = self.selected.numpy()
        self.arrays = (token_slots.numpy(), seq_lens.long().numpy(), budgets.numpy())
        self.whole = [
            (row, self.selected[row, 0, :length])
            for row, (length, budget) in enumerate(zip(lengths, kept, strict=True))
            if length <= budget
        ]


class SparseLayer:
    """A sparse layer whose method keeps codes, with its caches.

    Parameters
    ----------
    encoder : hata_kernels.encoders.Encoder
    k_cache, v_cache : torch.Tensor
        bfloat16, float16 or float32 ``[slots, kv_heads, D]``, contiguous.
    codes : torch.Tensor
        int32 ``[slots, kv_heads, words]``, contiguous.
    scales : torch.Tensor or None
        ``[slots, kv_heads]`` of the encoder's `scale_dtype`, contiguous; None where it has none.
    sink, recent : int
        How many first and last tokens are always kept.
    scale : float
        Softmax scale.

    Attributes
    ----------
    buffers : tuple
        From ``k_cache`` to ``scales``.

    Raises
    ------
    ValueError
        When a shape, dtype, device or number does not fit.
    """

    def __init__(
        self,
        encoder: Encoder,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        codes: torch.Tensor,
        scales: torch.Tensor | None,
        *,
        sink: int,
        recent: int,
        scale: float,
    ):
        where = {"device": torch.device("cpu"), "contiguous": True}
        shape = (None, encoder.num_kv_heads, encoder.head_dim)
        expect_tensor("k_cache", k_cache, shape=shape, dtypes=tuple(KINDS), **where)
        expect_tensor("v_cache", v_cache, shape=k_cache.shape, dtypes=(k_cache.dtype,), **where)
        shape = (*k_cache.shape[:2], encoder.words)
        expect_tensor("codes", codes, shape=shape, dtypes=(torch.int32,), **where)
        found = None if scales is None else scales.dtype
        expect(found == encoder.scale_dtype, "scales", encoder.scale_dtype, found)
        if scales is not None:
            expect_tensor("scales", scales, shape=shape[:2], **where)
        expect(min(sink, recent) >= 0, "sink and recent", "at least 0", (sink, recent))
        weights, bits, scale_bits = encoder.plane_weights, encoder.bits, encoder.scale_bits
        powers = all(weight & (weight - 1) == 0 for weight in weights)
        expect(powers, "plane_weights", "powers of 2", weights)
        self.encoder, self.buffers, self.scale = encoder, (k_cache, v_cache, codes, scales), scale
        self._planes = (encoder.num_kv_heads, len(weights), encoder.words)
        bias = encoder.score_bias
        self._biases = (encoder.num_kv_heads, 0 if bias is None else bias.shape[1])
        self._no_slots = torch.empty(0, dtype=torch.int64)
        full, encoding = full_score(weights, bits), _encoding_of(encoder)
        self._method = encoding[0]
        self._arguments = (
            KINDS[k_cache.dtype],
            _words(k_cache),
            _words(v_cache),
            codes.numpy(),
            _NO_SCALES if scales is None else scales.view(torch.uint8).numpy(),
            *encoding,
            np.array([weight.bit_length() - 1 for weight in weights]),
            full,
            score_levels(weights, bits, scale_bits),
            score_shift(full, scale_bits) if scale_bits else 0,
            sink,
            recent,
            scale,
        )

    def __call__(
        self,
        q: torch.Tensor,
        rows: Rows,
        new_slots: torch.Tensor | None = None,
        tally: torch.Tensor | None = None,
        left_out: LeftOut | None = None,
    ) -> torch.Tensor:
        """Encode a step's keys and queries, select the best tokens of every row, attend to them.

        Encodes as `Encoder.encode_step` does, up to rounding, selects what `rank_naive` does, and
        attends as `attend_naive` does, up to rounding. A row of no more tokens than its budget gets
        bit for bit what SGLang's torch_native backend computes, which makes the same call. No row's
        result depends on the others. One thread: a layer of a few thousand tokens takes less time
        than waking another one up.

        Parameters
        ----------
        q : torch.Tensor
            ``[bs, q_heads, D]``, the dtype of the caches; its last dimension is contiguous.
        rows : Rows
        new_slots : torch.Tensor, optional
            int32 or int64 ``[any]``: slots of keys of which codes and scales are missing and are
            written.
        tally : torch.Tensor, optional
            See `hata_kernels.tally`: counts the keys, the rows' contexts and what is attended.
        left_out : LeftOut, optional
            As in `hata_kernels.attend.attend`; the newest token is the last of a row.

        Returns
        -------
        torch.Tensor
            ``[bs, q_heads, D]``, dtype of ``q``.

        Raises
        ------
        ValueError
            When a shape, dtype or device does not fit, or a slot is not one of the caches.
        """
        slots = self._no_slots if new_slots is None else new_slots
        ranked = len(rows.whole) < len(q)
        out = torch.empty(q.shape, dtype=q.dtype) if ranked else None
        planes, biases = _NO_PLANES, _NO_BIASES
        try:
            if q.dtype != self.buffers[0].dtype:
                raise TypeError(f"q.dtype: expected that of the caches, found {q.dtype}")
            if self._method == GIVEN:
                planes = self._encode(q, slots).numpy().reshape(-1, *self._planes)
            elif ranked:
                planes = np.empty((len(q), *self._planes), np.int32)
            if ranked:
                biases = np.empty((len(q), *self._biases), np.int32)
            status = decode_layer(
                _words(q),
                (slots.long() if slots.dtype == torch.int32 else slots).numpy(),
                planes,
                biases,
                rows.selected_array,
                _words(out) if ranked else _NO_NUMBERS,
                *rows.arrays,
                *self._arguments,
                _NO_TALLY if tally is None else tally.numpy(),
                *(_NO_MEAN if left_out is None else _mean_of(left_out)),
            )
        except MISFIT_ERRORS:
            self._check(q, rows, slots, tally, left_out)
            raise
        if status != DONE:
            self._check(q, rows, slots, tally, left_out)
            expect(status != BAD_SLOT, "slots", f"0 to {len(self.buffers[0]) - 1}", "others")
        rows.planes, rows.biases = planes, biases
        if not rows.whole:
            return out
        whole = [self._attend_whole(q[row : row + 1], own) for row, own in rows.whole]
        if not ranked:
            return whole[0] if len(q) == 1 else torch.cat(whole)
        for (row, _), attended in zip(rows.whole, whole, strict=True):
            out[row] = attended[0]
        return out

    def _attend_whole(self, q: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Attention of one row's queries ``[1, q_heads, D]`` over all of its tokens."""
        keys, values = (
            cache.index_select(0, slots).transpose(0, 1).unsqueeze(0) for cache in self.buffers[:2]
        )
        grouped = self.encoder.group > 1
        return scaled_dot_product_attention(
            q.unsqueeze(2), keys, values, scale=self.scale, enable_gqa=grouped
        ).squeeze(2)

    def _encode(self, q: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Codes of the queries, by PyTorch; those of new keys go to their slots."""
        if len(slots):
            k_cache, _, codes, scales = self.buffers
            keys = k_cache.index_select(0, slots)
            self.encoder.encode_keys(keys, codes=codes, slots=slots, scales=scales)
        return self.encoder.encode_queries(q).codes

    def _check(
        self,
        q: torch.Tensor,
        rows: Rows,
        slots: torch.Tensor,
        tally: torch.Tensor | None,
        left_out: LeftOut | None,
    ) -> None:
        """Raise for what does not fit."""
        check_tally(tally, self.buffers[0].device)
        cache, heads = self.buffers[0], self._planes[0]
        shape = (len(rows.selected), heads * self.encoder.group, cache.shape[2])
        expect_tensor("q", q, shape=shape, dtypes=(cache.dtype,), device=cache.device)
        expect(q.stride(2) == 1, "q.stride(2)", 1, q.stride(2))
        where = {"device": cache.device, "contiguous": True}
        expect_tensor("slots", slots, shape=(None,), dtypes=(torch.int32, torch.int64), **where)
        found = rows.selected.shape[1]
        expect(found == heads, "rows", f"of {heads} KV heads", found)
        if left_out is not None:
            left_out.check(len(q), q.shape[1], cache)
            requests, most = left_out.rows.tolist(), len(left_out.sums) - 1
            fits = all(0 <= request <= most for request in requests)
            expect(fits, "left_out.rows", f"0 to {most}", requests)


def _encoding_of(encoder: Encoder) -> tuple:
    """Say who encodes, and with which weights: arguments of `decode_layer`, from ``method``, which
    is `GIVEN` where PyTorch does, to ``steps``.
    """
    tensors = {name: tensor.contiguous().numpy() for name, tensor in encoder.tensors().items()}
    steps = tensors.get("scale_step", _NO_STEPS)
    if isinstance(encoder, AsymmetricEncoder):
        residual = tensors.get("residual_weight", _NO_MATRIX)
        of_keys = (tensors["key_weight"], tensors["key_bias"], residual)
        unit = encoder.clip / 2 ** (encoder.query_bits - 1)
        bias = _NO_ROWS if encoder.score_bias is None else encoder.score_bias.numpy()
        of_queries = (tensors["query_weight"], tensors["query_bias"], unit, bias)
        return ASYMMETRIC, *of_keys, *of_queries, steps
    rest = (_NO_ROWS, _NO_MATRIX, _NO_MATRIX, _NO_ROWS, 0.0, _NO_ROWS)
    if isinstance(encoder, LinearEncoder):
        return LINEAR, tensors["weight"], *rest, steps
    return GIVEN, _NO_MATRIX, *rest, _NO_STEPS


def _mean_of(left_out: LeftOut) -> tuple:
    """Arguments of `decode_layer`, from ``sums`` on."""
    return left_out.sums.numpy(), left_out.rows.long().numpy(), left_out.weights.numpy()


def _words(numbers: torch.Tensor) -> np.ndarray:
    return numbers.view(torch.uint16).numpy()
