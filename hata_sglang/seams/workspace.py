"""Device memory beside the pool, counted before SGLang sizes the pool."""

from __future__ import annotations

from typing import Any

import torch

from hata_sglang.decoding import ValueSums
from hata_sglang.seams import versions
from hata_sglang.seams.session import Session


def workspace_bytes(configurator: Any, session: Session) -> int:
    """Bytes that decoding takes beside the pool; 0 on a CPU.

    Encoders, and what a step's kernels read and write: in CUDA graphs for the largest batch that is
    captured, in eager steps for the largest that may run. Sums of values, of all requests that
    SGLang has room for.

    Parameters
    ----------
    configurator : sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator
    session : Session
    """
    device, args = torch.device(configurator.device), versions.resolved(configurator.server_args)
    if device.type == "cpu" or configurator.is_draft_worker:
        return 0
    captured = versions.decode_graph_max_bs(configurator.server_args)
    most = args.max_running_requests or 0
    rows = [captured] if most <= captured else [captured, most]
    dtype = configurator.model_config.dtype
    encoders = sum(encoder.bytes_in(dtype) for encoder in session.encoders.values())
    # Row 0 of SGLang's table of slots is padding.
    requests = 1 + versions.most_requests(args.max_running_requests)
    sums = ValueSums.nbytes(len(session.left_out), requests, session.shape)
    return encoders + sums + sum(_step_bytes(session, bs, device) for bs in rows if bs)


def _step_bytes(session: Session, bs: int, device: torch.device) -> int:
    """Bytes of a step's buffers for so many rows of the longest context."""
    from hata_kernels.attend import fits_dense
    from hata_sglang.decoding.gpu_buffers import BufferSizes, scratch_bytes
    from hata_sglang.decoding.planned import choose_attend, planned_bytes

    shape = session.shape
    heads = (shape.num_heads, shape.num_kv_heads, shape.head_dim)
    some_dense = len(session.sparse_plans) < len(session.plans)
    sizes = BufferSizes.of(
        session.sparse_plans,
        session.encoders,
        shape,
        bs=bs,
        width=shape.context_len,
        dense=some_dense and fits_dense(*heads, device),
    )
    planned = 0
    if choose_attend(session.config.attend, shape, device, bool(session.left_out)) == "flashinfer":
        planned = planned_bytes(session.sparse_plans, shape, bs, device)
    return sizes.nbytes + scratch_bytes(session.encoders, bs) + planned
