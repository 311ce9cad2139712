"""Device memory beside the pool, counted before SGLang sizes the pool."""

from __future__ import annotations

from typing import Any

import torch

from hata_sglang.seams import versions
from hata_sglang.seams.session import Session


def graph_workspace_bytes(configurator: Any) -> int:
    """Bytes that CUDA graphs of the sparse layers will take; 0 on a CPU.

    Parameters
    ----------
    configurator : sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator
    """
    if torch.device(configurator.device).type == "cpu" or configurator.is_draft_worker:
        return 0
    from hata_kernels.attend import fits_dense
    from hata_sglang.decoding.gpu_buffers import BufferSizes

    session = Session.open(configurator.model_config)
    shape = session.shape
    heads = (shape.num_heads, shape.num_kv_heads, shape.head_dim)
    some_dense = len(session.sparse_plans) < shape.num_layers
    return BufferSizes.of(
        session.sparse_plans,
        session.weights,
        bs=versions.decode_graph_max_bs(configurator.server_args),
        width=shape.context_len,
        context_len=shape.context_len,
        num_kv_heads=shape.num_kv_heads,
        group=shape.num_heads // shape.num_kv_heads,
        head_dim=shape.head_dim,
        dense=some_dense and fits_dense(*heads, torch.device(configurator.device)),
    ).nbytes
