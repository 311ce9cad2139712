"""Queries, keys and values of a model's layers, taken where SGLang's attention gets them.

So they are those of the engine that serves: after RoPE, of every architecture, quantisation and
expert layout that SGLang runs with softmax attention. A sequence goes through the functions of
SGLang's own one-batch benchmark (``sglang/benchmark/one_batch.py``).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from hata_sglang.errors import HataError

#: Tokens of a step of prefill: what a step needs beside the weights is bounded.
CHUNK = 8192


class Recording(NamedTuple):
    """What one layer's attention got on one sequence.

    Attributes
    ----------
    q : torch.Tensor
        ``[N, Hq, D]``, queries of the positions that were asked for, after RoPE.
    k, v : torch.Tensor
        ``[S, Hkv, D]``, of all positions; v is None where nobody asked for it. All bfloat16, which
        is what a KV cache keeps, on the CPU.
    scale : float
        What the model multiplies q.k with before softmax.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor | None
    scale: float


class _Tap:
    """Stands before a backend's prefill, and takes what goes in."""

    def __init__(self, stock: Any, layers: Collection[int], values: bool) -> None:
        self.stock, self.values = stock, values
        self.rows = torch.empty(0, dtype=torch.int64)
        self.scales: dict[int, float] = {}
        self.parts: dict[int, list[tuple[torch.Tensor, ...]]] = {layer: [] for layer in layers}

    def __call__(self, q, k, v, layer, forward_batch, save_kv_cache=True, **kwargs):
        from hata_sglang.seams.layers import require_plain

        if layer.layer_id in self.parts:
            require_plain(layer, kwargs)
            queries = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
            keys = k.reshape(-1, layer.tp_k_head_num, layer.qk_head_dim)
            cut = [queries[self.rows.to(q.device)], keys]
            if self.values:
                cut.append(v.reshape(-1, layer.tp_v_head_num, layer.v_head_dim))
            if not all(x.isfinite().all() for x in cut):
                raise HataError(
                    f"model, layer {layer.layer_id}: expected finite queries, keys and values, "
                    "found NaN or infinite ones. Check the model's weights; the checkpoint may be "
                    "damaged."
                )
            # Copied now: what follows may write on them.
            copies = tuple(x.to("cpu", torch.bfloat16, copy=True) for x in cut)
            self.parts[layer.layer_id].append(copies)
            self.scales[layer.layer_id] = float(layer.scaling)
        return self.stock(q, k, v, layer, forward_batch, save_kv_cache=save_kv_cache, **kwargs)


@torch.no_grad()
def record(
    runner: Any,
    tokens: Sequence[int],
    positions: torch.Tensor,
    layers: Collection[int],
    values: bool = True,
) -> dict[int, Recording]:
    """Run a model on one sequence and take what some of its layers' attention gets.

    Parameters
    ----------
    runner : sglang.srt.model_executor.model_runner.ModelRunner
        With a stock attention backend and without captured prefills. Its pools are emptied.
    tokens : sequence of int
        At most as many as the pools hold.
    positions : torch.Tensor
        Int64 ``[N]``, rising, whose queries are wanted.
    layers : collection of int
        Of full attention (`hata_sglang.seams.layers.check_layers`).
    values : bool
        Whether v is wanted, too.

    Raises
    ------
    HataError
        If a number is not finite, or a layer's attention is more than softmax.
    """
    # Not at the top: processes that only wait for a recording need no SGLang.
    from sglang.benchmark import one_batch

    runner.req_to_token_pool.clear()
    runner.token_to_kv_pool_allocator.clear()
    backend, requests = runner.attn_backend, None
    backend.forward_extend = tap = _Tap(backend.forward_extend, layers, values)
    try:
        for start in range(0, len(tokens), CHUNK):
            end = min(start + CHUNK, len(tokens))
            tap.rows = positions[(positions >= start) & (positions < end)] - start
            known = [list(tokens[:end])]
            if requests is None:
                requests = one_batch.prepare_synthetic_inputs_for_latency_test(1, end, known)
            else:
                cut = SimpleNamespace(cut_len=start)
                one_batch.prepare_extend_inputs_for_correctness_test(cut, known, requests, runner)
            one_batch.extend(requests, runner)
    finally:
        del backend.forward_extend
    found = {}
    for layer, parts in tap.parts.items():
        q, k, *v = map(torch.cat, zip(*parts, strict=True))
        found[layer] = Recording(q, k, v[0] if v else None, tap.scales[layer])
    return found
