"""One-bit keys against a query of a few bits per projection, one query per KV head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from ..checks import expect
from ..score.distance import DISTANCES, whole_bias
from ..score.levels import full_score, score_shift
from .base import Encoder, Queries
from .weights import expect_names, project, take

if TYPE_CHECKING:
    from ..encode.triton_step import StepScratch

#: Bits of a quantised query at most, one for each plane.
MAX_PLANES = 8


class AsymmetricEncoder(Encoder):
    """Signs of the projected key; a query vector of the whole group, quantised to B bits.

    With ``x = k @ key_weight + key_bias``, key bit j is ``x[j] > 0``. With two stages the second
    half of the bits says what the first half, ``x1 = x[: r/2]``, left over: they are
    ``x[r/2 :] + s1 @ residual_weight > 0`` with ``s1`` the first half's signs, 1 where ``x1 > 0``
    and -1 elsewhere.

    The G query heads of a KV head, one after
    the other, make one vector, and ``u = [q_1 .. q_G] @ query_weight + query_bias`` has r numbers.
    With ``step = clip * rms(u) / 2**(B-1)`` (a zero rms counts as 1), number j becomes the level
    ``clamp(floor(u[j] / step), -2**(B-1), 2**(B-1) - 1)``, which stands for the odd integer
    ``2 * level + 1``; plane p holds bit p of ``level + 2**(B-1)`` and weighs ``2**p``. The score
    is then ``(M + sum_j (2 * level_j + 1) * s_j) / 2`` with key signs ``s_j`` of -1 or 1 and
    ``M = r * (2**B - 1)``.

    With ``distance_bias`` a token's score depends on how far it is from the query, too: the bias
    of its half octave (`hata_kernels.score.distance`) is added to ``u . s``, that is
    ``floor(bias / step + 1/2)`` to the score, which stays at 0 at least. With scales it is first
    divided by ``scale_step[h] * 2**shift / 2`` (`score_shift`), so many of which a score of 1 is.

    Ours; the nearest relative is RaBitQ's estimator with quantised queries (arXiv 2405.12497).

    Parameters
    ----------
    tensors : mapping of str to torch.Tensor
        ``key_weight [Hkv, D, r]``, ``key_bias [Hkv, r]``, ``query_weight [Hkv, G * D, r]``,
        ``query_bias [Hkv, r]``, with two stages ``residual_weight [Hkv, r/2, r/2]``, and with
        ``scale_bits`` ``scale_step [Hkv]``: a key's scale is the mean of ``|x|``, of ``|x1|``
        with two stages, in these steps. ``distance_bias [Hkv, DISTANCES]``, finite and at most 0,
        may be left out.
    num_kv_heads, group, head_dim : int
        KV heads, query heads per KV head, head size.
    query_bits : int
        B, 1 to 8.
    clip : float
        The largest level stands for this multiple of the query's root mean square.
    scale_bits : int
        0, 8 or 16.
    stages : int
        1 or 2.

    Raises
    ------
    ValueError
        When a tensor or an option does not fit.
    """

    OPTIONS = ("query_bits", "clip", "scale_bits", "stages")

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        *,
        num_kv_heads: int,
        group: int,
        head_dim: int,
        query_bits: int = 4,
        clip: float = 2.5,
        scale_bits: int = 0,
        stages: int = 1,
    ) -> None:
        known = range(1, MAX_PLANES + 1)
        expect(query_bits in known, "query_bits", f"1 to {MAX_PLANES}", query_bits)
        expect(0 < clip < float("inf"), "clip", "a positive number", clip)
        expect(stages in (1, 2), "stages", "1 or 2", stages)
        names = ["key_weight", "key_bias", "query_weight", "query_bias"]
        names += ["residual_weight"] * (stages == 2) + ["scale_step"] * bool(scale_bits)
        names += ["distance_bias"] * ("distance_bias" in tensors)
        expect_names(tensors, *names)
        bits = take(tensors, "key_weight", num_kv_heads, head_dim, None).shape[2]
        super().__init__(
            tensors,
            num_kv_heads=num_kv_heads,
            group=group,
            head_dim=head_dim,
            bits=bits,
            plane_weights=tuple(2**plane for plane in range(query_bits)),
            scale_bits=scale_bits,
        )
        self.query_bits, self.clip, self.stages = query_bits, float(clip), stages
        weights, half = self._tensors, bits // 2
        self.key_weight = weights["key_weight"]
        self.key_bias = take(weights, "key_bias", num_kv_heads, bits)
        self.query_weight = take(weights, "query_weight", num_kv_heads, group * head_dim, bits)
        self.query_bias = take(weights, "query_bias", num_kv_heads, bits)
        self.residual_weight = None
        if stages == 2:
            self.residual_weight = take(weights, "residual_weight", num_kv_heads, half, half)
        if "distance_bias" in weights:
            self.score_bias = self._score_bias(weights)

    def _score_bias(self, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The bias by distance as `whole_bias` takes it, checked."""
        bias = take(weights, "distance_bias", self.num_kv_heads, DISTANCES).float()
        others = bias[~(bias.isfinite() & (bias <= 0))].tolist()
        expect(not others, "distance_bias", "finite numbers, none above 0", others[:3])
        if not self.scale_bits:
            return bias
        shift = score_shift(full_score(self.plane_weights, self.bits), self.scale_bits)
        return bias / (self.scale_step.float() * 2 ** (shift - 1)).unsqueeze(1)

    def _keys(self, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        numbers = project(k, self.key_weight, self.key_bias)
        first = numbers[..., : self.bits // self.stages]
        if self.residual_weight is not None:
            signs = torch.where(first > 0, 1.0, -1.0)
            numbers[..., self.bits // 2 :] += project(signs, self.residual_weight)
        scales = self._whole_scales(first.abs().mean(dim=-1)) if self.scale_bits else None
        return numbers > 0, scales

    def query_levels(self, q: torch.Tensor) -> torch.Tensor:
        """Return the levels of queries ``[T, Hq, D]``: int32 ``[T, Hkv, r]``.

        Values from ``-2**(B-1)`` to ``2**(B-1) - 1``; level v stands for ``2 * v + 1``.
        """
        return self._levels(q)[0]

    def _levels(self, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Levels, and the step ``[T, Hkv]`` of each query's."""
        whole = q.reshape(len(q), *self.query_weight.shape[:2])
        u = project(whole, self.query_weight, self.query_bias)
        rms = u.square().mean(dim=-1, keepdim=True).sqrt()
        half = 2 ** (self.query_bits - 1)
        step = self.clip / half * torch.where(rms == 0, 1.0, rms)
        return (u / step).floor().clamp(-half, half - 1).int(), step.squeeze(-1)

    def _queries(self, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        levels, step = self._levels(q)
        codes = levels + 2 ** (self.query_bits - 1)
        plane = torch.arange(self.query_bits, dtype=torch.int32, device=q.device).unsqueeze(1)
        bits = (codes.unsqueeze(2) >> plane & 1).bool()
        bias = None if self.score_bias is None else whole_bias(self.score_bias, step)
        return bits, bias

    def _launch_keys(self, k, codes, slots, scales, tally=None) -> None:
        from ..encode.triton import encode_triton
        from ..encode.triton_residual import launch_residual

        if self.residual_weight is not None:
            launch_residual(self, k, codes, slots, scales, tally)
            return
        where = {"out": codes, "slots": slots, "scales": scales, "scale_step": self.scale_step}
        weights = (self.key_weight, self.key_bias)
        encode_triton(k, *weights, **where, scale_of="projections", tally=tally)

    def _launch_queries(self, q: torch.Tensor) -> Queries:
        from ..encode.triton_planes import launch_planes

        return launch_planes(self, q)

    def step_scratch(self, tokens: int, device: torch.device | None = None) -> StepScratch:
        """Scratch of `encode_step`: see `Encoder.step_scratch`."""
        from ..encode.triton_step import StepScratch

        sizes = (self.num_kv_heads, self.group, self.head_dim, self.bits)
        return StepScratch(tokens, *sizes, device or self.device)

    def _launch_step(self, q, k, codes, slots, scales, scratch, tally) -> Queries:
        from ..encode.triton_step import launch_step

        return launch_step(self, q, k, codes, slots, scales, scratch, tally)
