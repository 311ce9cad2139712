"""Sums of the values of whole requests: what `LeftOut` starts from when a prompt was extended.

A sum is made anew of all of a request's values, whatever brought them to the cache: a prompt, a
piece of one, a prefix that requests share. No result depends on a request's neighbours, or on how
its prompt was cut.
"""

from __future__ import annotations

import torch

from ..bits import power_of_2
from ..checks import FLOATS, INTEGERS, expect_table, expect_tensor

#: Tokens that a program sums, and of these at a time. Results change with both, by rounding.
PART, BLOCK = 512, 16
#: Numbers of a token that a program has: heads lie side by side.
COLUMNS = 256


def sum_values(
    v_cache: torch.Tensor,
    req_to_token: torch.Tensor,
    rows: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    longest: int,
    sums: torch.Tensor,
) -> None:
    """Sum the values of every row's tokens, in float32 and in a fixed order.

    Parameters
    ----------
    v_cache : torch.Tensor
        ``[slots, kv_heads, D]`` float32, bfloat16 or float16, contiguous.
    req_to_token : torch.Tensor
        int32 ``[requests, context]``: slots of every request in position order.
    rows : torch.Tensor
        int32 or int64 ``[bs]``: each row's request.
    seq_lens : torch.Tensor
        int32 or int64 ``[bs]``, tokens. A length of more than ``context`` counts as that: SGLang
        captures prompts of such lengths, with slots of nobody.
    longest : int
        No length is above it; on a GPU trusted.
    sums : torch.Tensor
        float32 ``[requests, kv_heads, D]``, contiguous: those of the rows' requests are written.

    Raises
    ------
    ValueError
        When a shape, dtype or device does not fit.
    """
    where = {"device": v_cache.device, "contiguous": True}
    expect_tensor("v_cache", v_cache, shape=(None, None, None), dtypes=FLOATS, contiguous=True)
    expect_table("req_to_token", req_to_token, None, v_cache.device)
    expect_tensor("rows", rows, shape=(None,), dtypes=INTEGERS, **where)
    expect_tensor("seq_lens", seq_lens, shape=rows.shape, dtypes=INTEGERS, **where)
    shape = (req_to_token.shape[0], *v_cache.shape[1:])
    expect_tensor("sums", sums, shape=shape, dtypes=(torch.float32,), **where)
    run = launch_sums if v_cache.is_cuda else sums_reference
    run(v_cache, req_to_token, rows, seq_lens, longest, sums)


def sums_reference(v_cache, req_to_token, rows, seq_lens, longest, sums) -> None:
    """`sum_values` by PyTorch, of checked arguments."""
    for request, length in zip(rows.tolist(), seq_lens.tolist(), strict=True):
        sums[request] = v_cache.index_select(0, req_to_token[request, :length]).float().sum(0)


def launch_sums(v_cache, req_to_token, rows, seq_lens, longest, sums) -> None:
    """`sum_values` on a GPU: parts of every row, then these together, in their order."""
    bs, columns = rows.shape[0], v_cache[0].numel()
    if bs == 0:
        return
    from .value_sums_kernels import _add_kernel, _sum_kernel

    width = req_to_token.shape[1]
    parts = max(1, -(-min(longest, width) // PART))
    partial = torch.empty(bs, parts, columns, dtype=torch.float32, device=v_cache.device)
    chunk = min(COLUMNS, power_of_2(columns))
    chunks = -(-columns // chunk)
    sizes = {"COLUMNS": columns, "CHUNK": chunk, "PART": PART, "num_warps": 4}
    where = (rows, seq_lens, partial)
    _sum_kernel[(bs, parts, chunks)](
        v_cache, req_to_token, *where, req_to_token.stride(0), width, parts, BLOCK=BLOCK, **sizes
    )
    _add_kernel[(bs, chunks)](*where, sums, width, parts, BLOCK=BLOCK, **sizes)
