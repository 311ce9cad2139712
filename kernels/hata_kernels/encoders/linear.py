"""Symmetric codes of one linear hash per KV head (HATA; random hyperplanes)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .base import Encoder, Queries
from .weights import expect_names, project, take


class LinearEncoder(Encoder):
    """Signs of ``x @ weight``, for keys and for every query head of the group alike.

    Gong et al., "HATA", arXiv 2506.02572, section 3.1; its published code has one weight per KV
    head, as here, and weights scores by a stored norm of the key (``scale_bits``), which the
    paper's algorithm does not. With random weights: Charikar's hyperplanes, method `random`.

    Parameters
    ----------
    tensors : mapping of str to torch.Tensor
        ``weight [Hkv, D, r]``, and with ``scale_bits`` ``scale_step [Hkv]``: a key's scale is its
        L2 norm in these steps.
    num_kv_heads, group, head_dim : int
        KV heads, query heads per KV head, head size.
    scale_bits : int
        0, 8 or 16.

    Raises
    ------
    ValueError
        When a tensor or ``scale_bits`` does not fit.
    """

    OPTIONS = ("scale_bits",)

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        *,
        num_kv_heads: int,
        group: int,
        head_dim: int,
        scale_bits: int = 0,
    ) -> None:
        expect_names(tensors, "weight", *(["scale_step"] if scale_bits else []))
        weight = take(tensors, "weight", num_kv_heads, head_dim, None)
        super().__init__(
            tensors,
            num_kv_heads=num_kv_heads,
            group=group,
            head_dim=head_dim,
            bits=weight.shape[2],
            plane_weights=(1,) * group,
            scale_bits=scale_bits,
        )
        self.weight = self._tensors["weight"]

    def _keys(self, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        bits = project(k, self.weight) > 0
        if not self.scale_bits:
            return bits, None
        return bits, self._whole_scales(k.float().norm(dim=-1))

    def _queries(self, q: torch.Tensor) -> tuple[torch.Tensor, None]:
        bits = project(q, self.weight) > 0
        return bits.unflatten(1, (self.num_kv_heads, self.group)), None

    def _launch_keys(self, k, codes, slots, scales, tally=None) -> None:
        from ..encode.triton import encode_triton

        where = {"out": codes, "slots": slots, "scales": scales, "scale_step": self.scale_step}
        encode_triton(k, self.weight, **where, scale_of="norm", tally=tally)

    def _launch_queries(self, q: torch.Tensor) -> Queries:
        from ..encode.triton import encode_triton

        return Queries(encode_triton(q, self.weight))

    def _launch_step(self, q, k, codes, slots, scales, scratch, tally) -> Queries:
        from ..encode.triton_step_linear import launch_step

        return Queries(launch_step(self, q, k, codes, slots, scales, tally))
