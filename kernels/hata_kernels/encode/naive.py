"""CPU encoder: one batched matrix product and a bit pack."""

from __future__ import annotations

import torch

from ..bits import WORD_BITS, pack_bits
from ..checks import FLOATS, expect, expect_tensor


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
        expect_tensor(
            "slots", slots, shape=(tokens,), dtypes=(torch.int64, torch.int32), device=x.device
        )
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


def encode_naive(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    slots: torch.Tensor | None = None,
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

    Returns
    -------
    torch.Tensor
        ``out``.

    Raises
    ------
    ValueError
        When a shape, dtype or device does not fit, or ``slots`` comes without ``out``.

    Notes
    -----
    Sums of a few thousand products may round differently for different T, so a bit whose
    projection is within rounding of zero can differ between calls; all others cannot.
    """
    group, words = check_encode(x, weight, bias, out, slots)
    tokens, heads, dim = x.shape
    kv_heads = heads // group
    # [kv_heads, T * G, D]: one product per KV head, whatever the group size.
    rows = x.unflatten(1, (kv_heads, group)).transpose(0, 1).reshape(kv_heads, -1, dim)
    projection = torch.bmm(rows.float(), weight.float())
    if bias is not None:
        projection += bias.float().unsqueeze(1)
    codes = pack_bits(projection > 0)
    codes = codes.view(kv_heads, tokens, group, words).transpose(0, 1).reshape(tokens, heads, words)
    if out is None:
        return codes.contiguous()
    if slots is None:
        return out.copy_(codes)
    return out.index_copy_(0, slots.long(), codes)
