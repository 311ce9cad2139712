"""GPU attention over selected slots: FlashInfer's paged decode, one row per (request, KV head).

The pool ``[slots, kv_heads, D]`` is viewed as ``[slots * kv_heads, 1, 1, D]``: pages of one token
of one head. Row (b, h) of the batch is request b for KV head h, its G queries are the heads of
that row, and its pages are ``slot * kv_heads + h`` for the slots selected for (b, h).

Facts relied upon (FlashInfer 0.6.14: flashinfer/decode.py, csrc/batch_decode.cu and, under
include/flashinfer, attention/decode.cuh, attention/scheduler.cuh, page.cuh; 0.7.2 reads alike):

- `plan` works on host lengths. It splits rows into chunks, writes the schedule (which chunk of
  which row each block handles, chunk size, block mask) to a pinned buffer and copies it to the
  wrapper's integer workspace on the current stream; it copies indptr and last_page_len likewise.
  Given host tensors it never waits for the device.
- `run` reads on the device: the schedule, indptr (the row lengths), the indices and
  last_page_len. A block's range is ``min((tile + 1) * chunk, length) - tile * chunk``, unsigned:
  with a row shorter than planned it wraps around (undefined behaviour), with a longer one the
  tail is dropped. So indptr on the device must be the one that was planned. Here only `plan`
  writes it, from the same counts.
- With ``use_cuda_graph`` the batch size is fixed, buffers are the given ones, and grid and
  workspace offsets depend on the batch size alone (scheduler.cuh, DecodePlan and PrefillPlan):
  a captured `run` stays valid after a new `plan`, which only changes buffer contents.
- The next `plan` overwrites the pinned buffers on the host, so it must not start before the
  copies of the last one are done; FlashInfer does not check that, `SparseDecode` does.
- Without tensor cores, kernels exist for 1, 2, 3, 4 and 8 query heads per KV head.
- A wrapper owns 8 MiB on the device and 8 MiB pinned for the schedule. Its real size is a few
  tens of bytes per row and block, and there is one wrapper per captured batch size and budget,
  so ours are replaced by smaller ones (`reset_workspace_buffer`).
- Pool offsets are ``size_t(page) * D``: only the page index itself must fit in int32.
"""

from __future__ import annotations

import torch

from ..checks import expect, expect_tensor

CUDA_CORE_GROUPS = (1, 2, 3, 4, 8)
HEAD_DIMS = (64, 128, 256)


def workspace_bytes(rows: int, group: int, head_dim: int, sm_count: int) -> int:
    """Return the float workspace that `SparseDecode` needs for partial results, in bytes.

    Parameters
    ----------
    rows : int
        Largest batch size times KV heads.
    group, head_dim : int
        Query heads per KV head, and their size.
    sm_count : int
        Multiprocessors of the GPU.

    Returns
    -------
    int
        An upper bound of what FlashInfer's planner asks for (scheduler.cuh, DecodePlan and
        PrefillPlan). Wrappers that run on one stream can share one buffer.
    """
    if group in CUDA_CORE_GROUPS:
        tile, blocks = 1, 16 * sm_count  # 128 threads a block, 2,048 threads a multiprocessor
    else:
        tile = 16 if group <= 16 else 64
        blocks = max(2 * sm_count, -(-rows * group // tile) + rows - 1)
    return group * blocks * tile * (head_dim + 1) * 4 + 256


class SparseDecode:
    """Attention over selected slots for one budget and one (captured) batch size.

    Parameters
    ----------
    max_batch : int
        Requests per step: exactly this many with ``use_cuda_graph``, at most this many without.
    num_kv_heads, group, head_dim : int
        KV heads, query heads per KV head, head size (64, 128 or 256).
    k_max : int
        Most tokens attended per (request, KV head).
    dtype : torch.dtype
        Of queries, caches and output: bfloat16 or float16.
    device : torch.device
        A CUDA device.
    workspace : torch.Tensor
        uint8, at least `workspace_bytes` long, zeroed once; may be shared by wrappers that run on
        one stream.
    scale : float
        Softmax scale.
    use_cuda_graph : bool
        Whether `run` is captured.
    pages : torch.Tensor, optional
        int32 scratch of at least ``max_batch * num_kv_heads * k_max``, to share between wrappers
        that run on one stream: `run` fills it before it reads it. Allocated when None.

    Raises
    ------
    ValueError
        When an argument does not fit.
    """

    def __init__(
        self,
        *,
        max_batch: int,
        num_kv_heads: int,
        group: int,
        head_dim: int,
        k_max: int,
        dtype: torch.dtype,
        device: torch.device,
        workspace: torch.Tensor,
        scale: float,
        use_cuda_graph: bool = False,
        pages: torch.Tensor | None = None,
    ) -> None:
        device = torch.device(device)
        expect(device.type == "cuda", "device", "a CUDA device", device)
        expect(dtype in (torch.bfloat16, torch.float16), "dtype", "bfloat16 or float16", dtype)
        expect(head_dim in HEAD_DIMS, "head_dim", " or ".join(map(str, HEAD_DIMS)), head_dim)
        expect(1 <= group <= 64, "group", "1 to 64", group)
        expect(
            min(max_batch, num_kv_heads, k_max) >= 1,
            "max_batch, num_kv_heads, k_max",
            "at least 1",
            (max_batch, num_kv_heads, k_max),
        )
        rows = max_batch * num_kv_heads
        properties = torch.cuda.get_device_properties(device)
        needed = workspace_bytes(rows, group, head_dim, properties.multi_processor_count)
        expect_tensor("workspace", workspace, shape=(None,), dtypes=(torch.uint8,))
        expect(
            workspace.numel() >= needed, "workspace", f"at least {needed} bytes", workspace.numel()
        )
        if pages is None:
            pages = torch.empty(rows * k_max, dtype=torch.int32, device=device)
        expect_tensor("pages", pages, shape=(None,), dtypes=(torch.int32,), contiguous=True)
        expect(
            pages.numel() >= rows * k_max,
            "pages",
            f"at least {rows * k_max} entries",
            pages.numel(),
        )

        from flashinfer import BatchDecodeWithPagedKVCacheWrapper

        self._max_batch, self._heads, self._group = max_batch, num_kv_heads, group
        self._head_dim, self._k_max, self._dtype = head_dim, k_max, dtype
        self._scale, self._graph = scale, use_cuda_graph
        self._pages = pages[: rows * k_max]
        self._indptr = torch.zeros(rows + 1, dtype=torch.int32, device=device)
        # Pinned, so that the copies to the device are asynchronous.
        self._indptr_host = torch.zeros(rows + 1, dtype=torch.int32, pin_memory=True)
        self._ones_host = torch.ones(rows, dtype=torch.int32, pin_memory=True)
        self._counts: torch.Tensor | None = None
        self._copied: torch.cuda.Event | None = None
        buffers = {}
        if use_cuda_graph:
            buffers = {
                "use_cuda_graph": True,
                "paged_kv_indptr_buffer": self._indptr,
                "paged_kv_indices_buffer": self._pages,
                "paged_kv_last_page_len_buffer": torch.ones_like(self._indptr[1:]),
            }
        self._wrapper = BatchDecodeWithPagedKVCacheWrapper(
            workspace,
            "NHD",
            use_tensor_cores=group not in CUDA_CORE_GROUPS,
            backend="fa2",  # a newer FlashInfer's "auto" may pick cuDNN, which plans otherwise
            **buffers,
        )
        schedule = 64 * (2 * rows + 32 * properties.multi_processor_count)
        self._wrapper.reset_workspace_buffer(
            workspace, torch.empty(max(schedule, 2**18), dtype=torch.uint8, device=device)
        )

    def plan(self, counts: torch.Tensor) -> bool:
        """Plan the work for rows of these lengths. Call outside of graph capture.

        Parameters
        ----------
        counts : torch.Tensor
            int32 ``[bs]`` on the host: tokens selected per KV head of each request,
            ``min(seq_len, budget)``.

        Returns
        -------
        bool
            False when the counts are those of the last plan, which then still holds.

        Raises
        ------
        ValueError
            When ``counts`` is not a host int32 vector, has a length this object was not made for,
            or a value outside 1 to ``k_max``.
        """
        expect_tensor(
            "counts", counts, shape=(None,), dtypes=(torch.int32,), device=torch.device("cpu")
        )
        batch = counts.shape[0]
        if self._counts is not None and torch.equal(counts, self._counts):
            return False
        if self._graph:
            expect(batch == self._max_batch, "len(counts)", self._max_batch, batch)
        expect(1 <= batch <= self._max_batch, "len(counts)", f"1 to {self._max_batch}", batch)
        least, most = (int(bound) for bound in counts.aminmax())
        expect(least >= 1 and most <= self._k_max, "counts", f"1 to {self._k_max}", (least, most))
        if self._copied is not None:
            # Waits only if the last plan's own copies are still queued, never for a step.
            self._copied.synchronize()
        self._counts = None  # should planning fail, the old plan is gone too
        rows = batch * self._heads
        indptr = self._indptr_host[: rows + 1]
        torch.cumsum(counts.repeat_interleave(self._heads), 0, dtype=torch.int32, out=indptr[1:])
        if not self._graph:
            self._indptr[: rows + 1].copy_(indptr, non_blocking=True)
        self._wrapper.plan(
            indptr,
            # The graph's index buffer is its own already; an empty tensor skips a copy onto itself.
            self._pages[:0] if self._graph else self._pages,
            self._ones_host[:rows],
            self._group,
            1,
            self._head_dim,
            1,
            q_data_type=self._dtype,
            kv_data_type=self._dtype,
            sm_scale=self._scale,
        )
        self._copied = torch.cuda.Event()
        self._copied.record()
        self._counts = counts.clone()
        self._most = most
        return True

    def run(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        slots: torch.Tensor,
        *,
        out: torch.Tensor | None = None,
        seq_lens: torch.Tensor | None = None,
        tally: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend over the selection; safe to capture. `plan` must hold for the selection's counts.

        Parameters
        ----------
        q : torch.Tensor
            ``[bs, kv_heads * group, D]``.
        k_cache, v_cache : torch.Tensor
            ``[slots, kv_heads, D]``, contiguous.
        slots : torch.Tensor
            int32 ``[bs, kv_heads, k]``, contiguous; the first ``counts[b]`` of row b are valid.
        out : torch.Tensor, optional
            ``[bs, kv_heads * group, D]``, contiguous. Allocated when None.
        seq_lens, tally : torch.Tensor, optional
            As in `write_pages`.

        Returns
        -------
        torch.Tensor
            ``out``.

        Raises
        ------
        ValueError
            When a shape or dtype does not fit the constructor's arguments or the plan, when
            nothing is planned, or when the pool has 2**31 or more (slot, head) pages.
        """
        expect(self._counts is not None, "plan", "a successful call before run", None)
        batch, heads, dim = self._counts.shape[0], self._heads, self._head_dim
        expect_tensor("q", q, shape=(batch, heads * self._group, dim), dtypes=(self._dtype,))
        expect_tensor(
            "k_cache", k_cache, shape=(None, heads, dim), dtypes=(self._dtype,), contiguous=True
        )
        expect_tensor(
            "v_cache", v_cache, shape=k_cache.shape, dtypes=(self._dtype,), contiguous=True
        )
        expect_tensor("slots", slots, shape=(batch, heads, None))
        expect(
            slots.shape[2] >= self._most, "slots.shape[2]", f"at least {self._most}", slots.shape[2]
        )
        pages = k_cache.shape[0] * heads
        expect(pages < 2**31, "slots * kv_heads of the pool", "less than 2**31", pages)
        if out is None:
            out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        expect_tensor("out", out, shape=q.shape, dtypes=(self._dtype,), contiguous=True)

        from .pages import write_pages

        write_pages(slots, self._indptr, self._pages, seq_lens, tally)
        self._wrapper.run(
            q.contiguous().view(batch * heads, self._group, dim),
            (k_cache.view(pages, 1, 1, dim), v_cache.view(pages, 1, 1, dim)),
            out=out.view(batch * heads, self._group, dim),
        )
        return out
