"""The attention backend: a stock SGLang backend whose sparse layers decode through hata.

So do dense layers on a GPU whose attention is plain. If hata decodes every layer of a captured
step, the stock backend's planning is skipped.

The stock backend is built by its own factory and then given more methods (`seams.retype`), which
costs dense layers and prefill nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend

from hata_sglang.config import LayerPlan
from hata_sglang.decoding import Batch, CpuDecoder, GpuDecoder, ValueSums
from hata_sglang.decoding.planned import PlannedAttention, choose_attend
from hata_sglang.errors import HataError
from hata_sglang.metrics import METRICS
from hata_sglang.seams import versions
from hata_sglang.seams.layers import attention_layers, dense_layers, require_plain
from hata_sglang.seams.retype import Methods, retype
from hata_sglang.seams.session import Session


def attach(backend: AttentionBackend, runner: Any, session: Session) -> AttentionBackend:
    """Turn a stock backend into one that decodes this session's sparse layers with hata.

    Parameters
    ----------
    backend : AttentionBackend
        What the stock factory returned; changed in place.
    runner : sglang.srt.model_executor.model_runner.ModelRunner
    session : Session

    Returns
    -------
    AttentionBackend
        The same object.
    """
    device, pool = torch.device(runner.device), runner.token_to_kv_pool
    facts, attend = session.facts(), None
    if device.type != "cpu":
        asked, mean = session.config.attend, bool(session.left_out)
        attend = facts["attend"] = choose_attend(asked, session.shape, device, mean)
    value_sums = None
    if session.left_out:
        requests = len(runner.req_to_token_pool.req_to_token)
        value_sums = ValueSums(session.left_out, requests, session.shape, device)
        if device.type != "cpu":
            value_sums.warm(pool.dtype)
    decoder = _make_decoder(
        session, attention_layers(runner.model), pool, device, attend, value_sums
    )
    retype(backend, HataMethods)
    # Those that hata decodes: all sparse ones, and dense ones where it can.
    backend.hata_plans = {
        plan.layer: plan for plan in session.plans if not plan.dense or plan.layer in decoder.dense
    }
    backend.hata_decoder = decoder
    backend.hata_pool = pool
    backend.hata_requests = runner.req_to_token_pool
    # Sizes of captured batches of which no layer is the stock backend's.
    backend.hata_alone = set()
    backend._hata_eager = False
    METRICS.serve(facts, pool.hata_codes.tallies, tuple(session.encoders))
    return backend


def _make_decoder(session, layers, pool, device, attend, value_sums) -> CpuDecoder | GpuDecoder:
    plans, book = session.sparse_plans, pool.hata_codes
    scales = {layer.layer_id: float(layer.scaling) for layer in layers}
    if attend is None:
        return CpuDecoder(plans, scales, book.encoders, book.tallies, value_sums)
    planned = None
    if attend == "flashinfer":
        where = {"dtype": pool.dtype, "device": device}
        planned = PlannedAttention(plans, scales, session.shape, **where)
    return GpuDecoder(
        plans,
        scales,
        book.encoders,
        session.shape,
        device=device,
        dense=dense_layers(layers, session, pool.dtype, device),
        tallies=book.tallies,
        planned=planned,
        value_sums=value_sums,
    )


class HataMethods(Methods):
    """What a stock backend gets."""

    #: What keeps samples of prompts, a `hata_sglang.seams.traffic.Sampler`, where one does.
    hata_traffic: Any = None

    def init_forward_metadata(self, forward_batch):
        """Make an eager step ready: the stock backend's way, and hata's where it decodes."""
        # Some bases' eager entry calls the out-of-graph method below as a part of itself.
        self._hata_eager = True
        try:
            self.hata_stock.init_forward_metadata(forward_batch)
        finally:
            self._hata_eager = False
        if forward_batch.forward_mode.is_decode():
            self.hata_decoder.prepare(self._hata_batch(forward_batch), graph=False)

    def init_forward_metadata_out_graph(self, forward_batch, in_capture=False):
        """Make ready a step that is captured, or replayed."""
        bs = forward_batch.batch_size
        decode = forward_batch.forward_mode.is_decode() and not self._hata_eager
        # A replay without kernels of the stock backend needs none of its plan: FlashInfer's
        # lists the slots of all tokens, 130 us for a request of 130,000 on an H200.
        if in_capture or not decode or bs not in self.hata_alone:
            self.hata_stock.init_forward_metadata_out_graph(forward_batch, in_capture=in_capture)
        if not decode:
            return
        if in_capture:
            self.hata_alone.add(bs)  # until a layer of the capture says otherwise
        self.hata_decoder.prepare(self._hata_batch(forward_batch), graph=True)

    def init_cuda_graph_state(self, max_bs, max_num_tokens, *args, **kwargs):
        """Allocate what captured steps of up to `max_bs` rows read."""
        self.hata_stock.init_cuda_graph_state(max_bs, max_num_tokens, *args, **kwargs)
        self.hata_decoder.allocate_static(max_bs)

    def get_fused_kv_write_buffers(self, *args, **kwargs):
        """None (0.5.23): a model that writes keys by itself would skip the codes."""
        return None

    def _hata_batch(self, forward_batch):
        bs = forward_batch.batch_size
        return Batch(
            self.hata_requests.req_to_token,
            forward_batch.req_pool_indices[:bs],
            forward_batch.seq_lens[:bs],
            forward_batch.seq_lens_cpu[:bs],
        )

    def forward_extend(self, q, k, v, layer, forward_batch, save_kv_cache=True, **kwargs):
        """Prefill one layer: the stock backend attends, the pool writes codes beside keys.

        Then values are summed, where a decode step will need their sum, and samples are taken,
        where calibration from traffic will.
        """
        plan = self.hata_plans.get(layer.layer_id)
        _require_keys(plan, k, save_kv_cache)
        out = self.hata_stock.forward_extend(
            q, k, v, layer, forward_batch, save_kv_cache=save_kv_cache, **kwargs
        )
        if plan is not None and plan.left_out == "mean":
            values = self.hata_pool.layer_cache(plan.layer).values
            batch = self._hata_batch(forward_batch)
            self.hata_decoder.value_sums.recount(plan.layer, values, batch)
        if self.hata_traffic is not None:
            cache = self.hata_pool.layer_cache(layer.layer_id)
            tokens = self.hata_requests.req_to_token
            self.hata_traffic.take(q, layer, forward_batch, tokens, cache)
        return out

    def forward_decode(self, q, k, v, layer, forward_batch, save_kv_cache=True, **kwargs):
        """Decode one layer of a step, by hata or by the stock backend.

        ``q [bs, Hq * D]``, ``k`` and ``v`` ``[bs, Hkv * D]`` after RoPE; returns ``[bs, Hq * D]``.
        """
        plan = self.hata_plans.get(layer.layer_id)
        _require_keys(plan, k, save_kv_cache)
        # Whatever else a dense layer hands over is for the inner backend to know.
        plain = k is not None and save_kv_cache and not kwargs
        if plan is None or (plan.dense and not plain):
            self.hata_alone.discard(forward_batch.batch_size)
            return self.hata_stock.forward_decode(
                q, k, v, layer, forward_batch, save_kv_cache=save_kv_cache, **kwargs
            )
        require_plain(layer, kwargs)
        # Ranking does not wait for the codes of keys that are kept anyway: the decoder writes
        # them with those of the queries.
        late = plan.recent > 0
        where, pool = versions.write_loc(forward_batch), self.hata_pool
        new_keys = pool.write_step(layer, where, k, v, codes=not late)
        cache = pool.layer_cache(layer.layer_id)
        heads = q.reshape(-1, layer.tp_q_head_num, layer.head_dim)
        out = self.hata_decoder.decode(plan, heads, cache, new_keys if late else None)
        return out.reshape(-1, layer.tp_q_head_num * layer.head_dim)


def _require_keys(plan: LayerPlan | None, k: Any, save_kv_cache: bool) -> None:
    """Stop where a model wrote keys to the cache by itself: they would have no codes."""
    if plan is not None and not plan.dense and (k is None or not save_kv_cache):
        raise HataError(
            f"layer {plan.layer}: expected the attention backend to write the keys, "
            "found a model that writes them by itself; hata cannot keep codes for it"
        )
