"""How each method ranks the cached tokens, the same on every device."""

from __future__ import annotations

import torch

from hata_kernels.encoders import Encoder
from hata_kernels.score import exact_score, score, score_dtype
from hata_sglang.config import LayerPlan


def dtype_of_scores(plan: LayerPlan, encoder: Encoder | None) -> torch.dtype | None:
    """Dtype of a layer's scores; None for streaming, which keeps tokens by their place alone."""
    if plan.method == "streaming":
        return None
    if encoder is None:
        return torch.float32
    return score_dtype(encoder.plane_weights, encoder.bits, encoder.scale_bits)


def write_scores(
    plan: LayerPlan,
    encoder: Encoder | None,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    codes: torch.Tensor | None,
    key_scales: torch.Tensor | None,
    token_slots: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    scale: float,
    out: torch.Tensor,
) -> torch.Tensor:
    """Score every cached token of every row and KV head for one layer.

    Parameters
    ----------
    plan : LayerPlan
        Any method but streaming.
    encoder : hata_kernels.encoders.Encoder or None
        The layer's, on q's device; None for exact.
    q : torch.Tensor
        ``[bs, Hq, D]``, after RoPE.
    k_cache : torch.Tensor
        ``[slots, Hkv, D]``; read by exact alone.
    codes, key_scales : torch.Tensor or None
        ``[slots, Hkv, words]`` and ``[slots, Hkv]``, where the method keeps them.
    token_slots, seq_lens : torch.Tensor
        int32 ``[bs, at least width]`` and ``[bs]``.
    scale : float
        Softmax scale, of exact.
    out : torch.Tensor
        ``[bs, Hkv, width]`` of `dtype_of_scores`; written up to ``seq_lens``.

    Returns
    -------
    torch.Tensor
        `out`.
    """
    forced = {"sink": plan.sink, "recent": plan.recent}
    if encoder is None:
        return exact_score(q, k_cache, token_slots, seq_lens, scale=scale, out=out, **forced)
    return score(
        encoder.encode_queries(q),
        codes,
        token_slots,
        seq_lens,
        plane_weights=encoder.plane_weights,
        scales=key_scales,
        scale_bits=encoder.scale_bits,
        out=out,
        **forced,
    )
