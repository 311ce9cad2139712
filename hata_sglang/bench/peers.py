"""What the stages of a sparse layer are timed beside: exact top-k, FlashInfer, dense attention."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hata_kernels.attend import DenseBuffers, SparseDecode, attend_dense
from hata_sglang.bench.layer import RECENT, SINK, LayerBuffers
from hata_sglang.bench.sparse_layer import SparseLayer

Step = Callable[[int], object]
FLASHINFER_WORKSPACE = 256 * 2**20


def exact_slots(layer: LayerBuffers, k: int) -> torch.Tensor:
    """Slots of the tokens that the group of query heads attends most, by matmul and ``torch.topk``.

    Parameters
    ----------
    layer : LayerBuffers
    k : int
        At most the tokens of a context. The first `SINK` and the last `RECENT` are always kept.

    Returns
    -------
    torch.Tensor
        int32 ``[bs, kv_heads, k]``, contiguous, in position order.
    """
    batch, tokens = layer.token_slots.shape
    kv_heads, dim = layer.k_cache.shape[1:]
    # Gathered head by head: a matmul over any other order would copy the keys once more.
    heads = torch.arange(kv_heads, dtype=torch.int32, device=layer.q.device)
    places = layer.token_slots[:, None, :] * kv_heads + heads[:, None]
    keys = layer.k_cache.view(-1, dim).index_select(0, places.flatten())
    queries = layer.q.reshape(batch * kv_heads, -1, dim) * dim**-0.5
    logits = torch.bmm(queries, keys.view(batch * kv_heads, tokens, dim).transpose(1, 2))
    scores = torch.softmax(logits, dim=-1, dtype=torch.float32).sum(dim=1)
    scores = scores.view(batch, kv_heads, tokens)
    scores[..., :SINK] = float("inf")
    scores[..., tokens - RECENT :] = float("inf")
    best = scores.topk(k, dim=-1, sorted=False).indices.sort(dim=-1).values
    slots = layer.token_slots[:, None, :].expand(-1, kv_heads, -1)
    return slots.gather(2, best).contiguous()


def flashinfer_attend(sparse: SparseLayer) -> Callable[[LayerBuffers, torch.Tensor], object]:
    """FlashInfer's paged decode over a selection, planned once: every row has k tokens."""
    scenario, shape = sparse.scenario, sparse.scenario.shape
    decode = SparseDecode(
        max_batch=scenario.batch,
        num_kv_heads=shape.kv_heads,
        group=shape.group,
        head_dim=shape.dim,
        k_max=scenario.k,
        dtype=sparse.out.dtype,
        device=sparse.out.device,
        workspace=_workspace(sparse),
        scale=shape.dim**-0.5,
        use_cuda_graph=True,
    )
    decode.plan(torch.full((scenario.batch,), scenario.k, dtype=torch.int32))

    def run(layer: LayerBuffers, slots: torch.Tensor) -> object:
        return decode.run(layer.q, layer.k_cache, layer.v_cache, slots, out=sparse.out)

    return run


def our_dense(sparse: SparseLayer) -> Step:
    """Our dense decode of the same buffers, which reads a shared prefix once."""
    scenario, shape = sparse.scenario, sparse.scenario.shape
    heads = (shape.q_heads, shape.kv_heads, shape.dim)
    made = DenseBuffers(scenario.batch, *heads, device=sparse.out.device)
    options = {"scale": shape.dim**-0.5, "out": sparse.out, "buffers": made}

    def step(i: int) -> None:
        layer = sparse.layers[i]
        caches = (layer.k_cache, layer.v_cache, layer.token_slots)
        attend_dense(layer.q, *caches, sparse.seq_lens, sparse.groups, **options)

    return step


def flashinfer_dense(sparse: SparseLayer, tensor_cores: bool) -> Step:
    """FlashInfer's dense decode of the same buffers, page size 1."""
    import flashinfer

    scenario, layers = sparse.scenario, sparse.layers
    batch, where = scenario.batch, {"dtype": torch.int32, "device": sparse.out.device}
    workspace, wrappers = _workspace(sparse), []
    for layer in layers:
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            workspace,
            "NHD",
            use_cuda_graph=True,
            use_tensor_cores=tensor_cores,
            paged_kv_indptr_buffer=torch.zeros(batch + 1, **where),
            paged_kv_indices_buffer=layer.token_slots.flatten(),
            paged_kv_last_page_len_buffer=torch.ones(batch, **where),
            backend="fa2",
        )
        wrapper.plan(
            torch.arange(batch + 1, dtype=torch.int32) * scenario.context,
            layer.token_slots.flatten(),
            torch.ones(batch, dtype=torch.int32),
            scenario.shape.q_heads,
            scenario.shape.kv_heads,
            scenario.shape.dim,
            1,
            q_data_type=torch.bfloat16,
            kv_data_type=torch.bfloat16,
        )
        wrappers.append(wrapper)

    def step(i: int) -> None:
        layer = layers[i]
        caches = (layer.k_cache.unsqueeze(1), layer.v_cache.unsqueeze(1))
        wrappers[i].run(layer.q, caches, out=sparse.out)

    return step


def _workspace(sparse: SparseLayer) -> torch.Tensor:
    """One for all layers, as in SGLang: they run one after the other."""
    return torch.zeros(FLASHINFER_WORKSPACE, dtype=torch.uint8, device=sparse.out.device)
