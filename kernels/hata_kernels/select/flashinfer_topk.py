"""Selection by FlashInfer's fused top-k and page-table transform, for equal budgets on a GPU.

Facts relied upon (FlashInfer 0.6.14, flashinfer/topk.py and include/flashinfer/topk.cuh):

- `top_k_page_table_transform(input, src_page_table, lengths, k, row_to_batch)` ranks
  ``input[i, :lengths[i]]`` and returns int32 ``src_page_table[row_to_batch[i], best]``, -1 padded.
  A row of length <= k is returned whole, in position order.
- input, src_page_table, lengths and row_to_batch must be contiguous; only the row stride of
  src_page_table is used, so it may be wider than input. lengths and row_to_batch are int32.
- Which kernel runs depends on shapes and dtype alone, and lengths are read on the device: safe to
  capture. The cached state buffer and the module are created at the first call, which must
  therefore happen outside a capture.
- By default ties are broken by whichever thread comes first, and the order within a row is
  arbitrary: two runs may select different tokens of equal score.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..checks import expect


@triton.jit
def _repeat_rows_kernel(seq_lens_ptr, lengths_ptr, row_to_batch_ptr, rows, HEADS: tl.constexpr):
    """Repeat each request's length and index for its KV heads."""
    row = tl.program_id(0) * 128 + tl.arange(0, 128)
    valid = row < rows
    batch = row // HEADS
    length = tl.load(seq_lens_ptr + batch, mask=valid, other=0).to(tl.int32)
    tl.store(lengths_ptr + row, length, mask=valid)
    tl.store(row_to_batch_ptr + row, batch, mask=valid)


def select_flashinfer(
    scores: torch.Tensor, token_slots: torch.Tensor, seq_lens: torch.Tensor, k_max: int
) -> torch.Tensor:
    """Select the ``min(seq_len, k_max)`` best tokens of every row on the GPU: see `select`.

    Raises
    ------
    ValueError
        When ``token_slots`` is not contiguous.
    """
    from flashinfer import top_k_page_table_transform

    batch, kv_heads, width = scores.shape
    rows = batch * kv_heads
    expect(token_slots.is_contiguous(), "token_slots", "contiguous", token_slots.stride())
    helper = torch.empty((2, rows), dtype=torch.int32, device=scores.device)
    _repeat_rows_kernel[(triton.cdiv(rows, 128),)](
        seq_lens, helper[0], helper[1], rows, HEADS=kv_heads
    )
    return top_k_page_table_transform(
        scores.view(rows, width), token_slots, helper[0], k_max, row_to_batch=helper[1]
    ).view(batch, kv_heads, k_max)
