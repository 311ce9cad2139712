"""The product that every method begins with."""

from __future__ import annotations

import torch


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
