"""CPU encoder: one product per KV head, a bit pack, and the keys' scales."""

from __future__ import annotations

import torch

from ..bits import WORD_BITS, pack_bits
from ..checks import FLOATS, expect, expect_tensor
from ..tally import count_encoded
from .scales import check_scales, scatter, whole_scales


def check_encode(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor | None,
    slots: torch.Tensor | None,
) -> tuple[int, int]:
    """Check the arguments of `encode_naive` and of its Triton counterpart.

    Returns
    -------
    tuple of int
        Query heads per KV head (1 when ``x`` holds keys) and words per code.

    Raises
    ------
    ValueError
        When a shape, dtype or device does not fit, or ``slots`` comes without ``out``.
    """
    expect_tensor("x", x, shape=(None, None, None), dtypes=FLOATS)
    tokens, heads, dim = x.shape
    expect_tensor(
        "weight", weight, shape=(None, dim, None), dtypes=FLOATS, device=x.device, contiguous=True
    )
    kv_heads, _, bits = weight.shape
    expect(bits > 0 and bits % WORD_BITS == 0, "weight.shape[2]", "a multiple of 32", bits)
    expect(heads % kv_heads == 0, "x.shape[1]", f"a multiple of {kv_heads} KV heads", heads)
    words = bits // WORD_BITS
    if bias is not None:
        shape = (kv_heads, bits)
        expect_tensor("bias", bias, shape=shape, dtypes=FLOATS, device=x.device, contiguous=True)
    if slots is not None:
        expect(out is not None, "out", "the codes buffer, because slots is given", None)
        integers = (torch.int64, torch.int32)
        where = {"device": x.device, "contiguous": True}
        expect_tensor("slots", slots, shape=(tokens,), dtypes=integers, **where)
    if out is not None:
        expect_tensor(
            "out",
            out,
            shape=(None if slots is not None else tokens, heads, words),
            dtypes=(torch.int32,),
            device=x.device,
            contiguous=True,
        )
    return heads // kv_heads, words


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


def encode_naive(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    slots: torch.Tensor | None = None,
    scales: torch.Tensor | None = None,
    scale_step: torch.Tensor | None = None,
    scale_of: str = "norm",
    tally: torch.Tensor | None = None,
) -> torch.Tensor:
    """Encode keys or queries: bit = (x @ weight + bias of its KV head > 0), packed into words.

    Parameters
    ----------
    x : torch.Tensor
        float32, bfloat16 or float16 ``[T, H, D]``: keys (H = KV heads) or queries (H a multiple;
        head h uses the weight of KV head ``h // (H // kv_heads)``).
    weight : torch.Tensor
        ``[kv_heads, D, r]``, contiguous, r a multiple of 32. The product is computed in float32.
    bias : torch.Tensor, optional
        ``[kv_heads, r]``, contiguous.
    out : torch.Tensor, optional
        int32, contiguous: ``[T, H, r // 32]``, or with ``slots`` the codes buffer
        ``[S, H, r // 32]``. Allocated when None.
    slots : torch.Tensor, optional
        int64 or int32 ``[T]``: write token t to ``out[slots[t]]``. Repeated slots keep one of the
        codes (SGLang pads batches with the reserved slot 0).
    scales : torch.Tensor, optional
        uint8 or int16 (the low 16 bits), contiguous, ``[S, kv_heads]`` (``[T, kv_heads]`` without
        slots): for keys, also write their scales, ``floor(m / scale_step[h] + 1/2)`` and at most
        the largest that fits.
    scale_step : torch.Tensor, optional
        float32 ``[kv_heads]``, positive; needed with ``scales``.
    scale_of : str
        ``"norm"``: m is the key's L2 norm; ``"projections"``: the mean of its projections'
        absolute values.
    tally : torch.Tensor, optional
        See `hata_kernels.tally`; with ``slots``.

    Returns
    -------
    torch.Tensor
        ``out``.

    Raises
    ------
    ValueError
        When a shape, dtype or device does not fit, ``slots`` comes without ``out``, or ``scales``
        without steps or for queries.

    Notes
    -----
    Sums of a few thousand products may round differently for different T, so a bit whose
    projection is within rounding of zero can differ between calls; all others cannot.
    """
    _, words = check_encode(x, weight, bias, out, slots)
    tokens, heads, _ = x.shape
    if out is None:
        out = torch.empty((tokens, heads, words), dtype=torch.int32, device=x.device)
    most = check_scales(scales, scale_step, out, weight.shape[0], scale_of)
    projection = project(x, weight, bias)
    if scales is not None:
        size = x.float().norm(dim=-1) if scale_of == "norm" else projection.abs().mean(dim=-1)
        scatter(scales, slots, whole_scales(size, scale_step, most))
    if slots is not None:
        count_encoded(tally, slots)
    return scatter(out, slots, pack_bits(projection > 0))
