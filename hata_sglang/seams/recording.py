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
    """What one layer's attention got on one sequence of S tokens.

    Attributes
    ----------
    tokens : tuple of int
        The sequence, with what the model wrote behind it.
    q : torch.Tensor
        ``[N, Hq, D]``, queries of the positions that were asked for, after RoPE.
    k, v : torch.Tensor
        ``[S, Hkv, D]``, of all positions; v is None where nobody asked for it. All bfloat16, which
        is what a KV cache keeps, on the CPU.
    scale : float
        What the model multiplies q.k with before softmax.
    """

    tokens: tuple[int, ...]
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor | None
    scale: float


class _Tap:
    """Stands before a backend's prefill and decode, and takes what goes in."""

    def __init__(self, layers: Collection[int], values: bool) -> None:
        self.values = values
        self.rows = torch.empty(0, dtype=torch.int64)
        self.scales: dict[int, float] = {}
        self.parts: dict[int, list[tuple[torch.Tensor, ...]]] = {layer: [] for layer in layers}

    def before(self, stock: Any) -> Any:
        """A method of a backend that is told what `stock` is called with."""

        def call(q, k, v, layer, forward_batch, save_kv_cache=True, **kwargs):
            self._take(q, k, v, layer, kwargs)
            return stock(q, k, v, layer, forward_batch, save_kv_cache=save_kv_cache, **kwargs)

        return call

    def _take(self, q, k, v, layer, kwargs) -> None:
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


@torch.no_grad()
def record(
    runner: Any,
    tokens: Sequence[int],
    positions: torch.Tensor,
    layers: Collection[int],
    values: bool = True,
    written: int = 0,
) -> dict[int, Recording]:
    """Run a model on one sequence and take what some of its layers' attention gets.

    Parameters
    ----------
    runner : sglang.srt.model_executor.model_runner.ModelRunner
        With a stock attention backend and without captured prefills. Its pools are emptied.
    tokens : sequence of int
        With those that are written, at most as many as the pools hold.
    positions : torch.Tensor
        Int64 ``[N]``, rising, whose queries are wanted.
    layers : collection of int
        Of full attention (`hata_sglang.seams.layers.check_layers`).
    values : bool
        Whether v is wanted, too.
    written : int
        Tokens that the model writes behind the sequence: sampled as it says, one decode step each.

    Raises
    ------
    HataError
        If a number is not finite, or a layer's attention is more than softmax.
    """
    # Not at the top: processes that only wait for a recording need no SGLang.
    from sglang.benchmark import one_batch
    from sglang.srt.sampling.sampling_params import SamplingParams

    runner.req_to_token_pool.clear()
    runner.token_to_kv_pool_allocator.clear()
    backend, requests, tap = runner.attn_backend, None, _Tap(layers, values)
    phases = ("forward_extend", "forward_decode")
    for phase in phases:
        setattr(backend, phase, tap.before(getattr(backend, phase)))

    def look(start: int, end: int) -> None:
        tap.rows = positions[(positions >= start) & (positions < end)] - start

    whole = list(tokens)
    try:
        for start in range(0, len(tokens), CHUNK):
            end = min(start + CHUNK, len(tokens))
            look(start, end)
            known = [list(tokens[:end])]
            if requests is None:
                requests = one_batch.prepare_synthetic_inputs_for_latency_test(1, end, known)
                if written:
                    requests[0].sampling_params = SamplingParams(temperature=1.0)
            else:
                cut = SimpleNamespace(cut_len=start)
                one_batch.prepare_extend_inputs_for_correctness_test(cut, known, requests, runner)
            chosen, _, batch = one_batch.extend(requests, runner)
        for _ in range(written):
            look(len(whole), len(whole) + 1)
            whole.append(int(chosen))
            chosen, _ = one_batch.decode(chosen, batch, runner)
    finally:
        for phase in phases:
            delattr(backend, phase)
    found = {}
    for layer, parts in tap.parts.items():
        q, k, *v = map(torch.cat, zip(*parts, strict=True))
        found[layer] = Recording(tuple(whole), q, k, v[0] if v else None, tap.scales[layer])
    return found
