"""Samples of live requests: queries, keys and values of some prompts, as they are prefilled.

Off unless the YAML has ``traffic``. For a share of the prompts one copy to the host is made in each
layer of trained codes; a thread of its own writes them to disk.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hata_sglang.config.traffic import Traffic
from hata_sglang.decoding import LayerCache
from hata_sglang.errors import HataError, Refusal
from hata_sglang.metrics import METRICS
from hata_sglang.seams.session import Session, served_model
from hata_sglang.training.capture import Capture, Sampling
from hata_sglang.training.traffic import TrafficFolder
from hata_sglang.weights.auto import model_name

logger = logging.getLogger(__name__)

#: A prompt of which the last chunk computes fewer queries (the rest was cached) is not kept.
LEAST_QUERIES = 32
#: Not Python's own, whose state SGLang seeds.
_RANDOM = random.SystemRandom()


def traffic_folder(settings: Traffic, config: Any) -> Path:
    """Where a server keeps requests to a model, of SGLang's config: in a folder of its own."""
    return Path(settings.folder) / model_name(served_model(config))


def keep_traffic(runner: Any) -> None:
    """Let a server's prefill keep samples from now on, where its YAML asks for them.

    Called when everything is built: what SGLang runs to warm up is no traffic.

    Parameters
    ----------
    runner : sglang.srt.model_executor.model_runner.ModelRunner

    Raises
    ------
    Refusal
        If prefill has another attention backend than decoding, which samples would not reach.
    """
    session = Session.of_rank(runner)
    if session is None or session.config.traffic is None:
        return
    settings, backend = session.config.traffic, runner.attn_backend
    if not hasattr(backend, "hata_traffic"):
        expected = "none where prefill and decoding have attention backends of their own"
        raise Refusal.of("traffic", expected, settings.folder)
    layers = [plan.layer for plan in session.sparse_plans if plan.weights is not None]
    folder = traffic_folder(settings, runner.model_config)
    backend.hata_traffic = Sampler(settings, TrafficFolder(folder), layers)
    METRICS.update(traffic=str(folder))
    shape = session.shape
    token = 4 * shape.num_kv_heads * shape.head_dim * len(layers)  # K and V in bfloat16
    most = settings.requests * settings.max * token
    logger.info("hata: %s: at most %.1f GB, no text", settings, most / 1e9)


@dataclass(frozen=True)
class _Sample:
    """A prompt of the batch at hand that is kept.

    Attributes
    ----------
    part : Path
    rows : torch.Tensor
        Int64 ``[N]``: places of its queries in the batch.
    positions : torch.Tensor
        Int64 ``[N]``: the same in the prompt.
    slots : torch.Tensor
        ``[S]``: slots of all its tokens, on the device.
    writes : list of Future
    """

    part: Path
    rows: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    writes: list[Future]


class Sampler:
    """Keeps samples of prompts; one at a time, which bounds what it takes of the host's memory.

    Parameters
    ----------
    settings : Traffic
    folder : TrafficFolder
    layers : sequence of int
        Of trained codes, rising.
    draw : callable
        Gives a number from 0 to 1 for each prompt that could be kept.
    """

    def __init__(
        self,
        settings: Traffic,
        folder: TrafficFolder,
        layers: Sequence[int],
        draw: Callable[[], float] = _RANDOM.random,
    ) -> None:
        self.settings, self.folder, self.layers, self.draw = settings, folder, layers, draw
        self._generator = torch.Generator()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="hata-traffic")
        self._sample: _Sample | None = None
        self._last: Future | None = None
        self._failed = False

    def take(
        self, q: Any, layer: Any, forward_batch: Any, req_to_token: Any, cache: LayerCache
    ) -> None:
        """Take what a layer's prefill has computed, of the prompt that is kept, if one is.

        Parameters
        ----------
        q : torch.Tensor
            ``[T, Hq * D]``, queries of the batch after RoPE, one request after the other.
        layer : sglang.srt.layers.radix_attention.RadixAttention
        forward_batch : sglang.srt.model_executor.forward_batch_info.ForwardBatch
        req_to_token : torch.Tensor
            int32 ``[max_requests, max_context]``.
        cache : LayerCache
            Of this layer, with the keys and values of the batch.
        """
        if layer.layer_id not in self.layers:
            return
        if layer.layer_id == self.layers[0]:
            self._sample = self._choose(forward_batch, req_to_token)
        sample = self._sample
        if sample is None:
            return
        queries = q.reshape(-1, layer.tp_q_head_num, layer.head_dim)
        rows, slots = sample.rows.to(q.device), sample.slots
        # On the host now: what follows may write on the batch, and slots may be freed.
        q, k, v = (
            part.to("cpu", torch.bfloat16)
            for part in (queries[rows], cache.keys[slots], cache.values[slots])
        )
        capture = Capture(q, k, sample.positions, float(layer.scaling), v)
        sample.writes.append(self._writer.submit(self._write, sample, layer.layer_id, capture))
        if layer.layer_id == self.layers[-1]:
            self._last = self._writer.submit(self._finish, sample)
            self._sample = None

    def _choose(self, batch: Any, req_to_token: torch.Tensor) -> _Sample | None:
        """The first prompt of a batch that is within the bounds, drawn, and at its last chunk."""
        writing = self._last is not None and not self._last.done()
        if writing or batch.extend_seq_lens_cpu is None:  # SGLang has no lengths on the host
            return None
        start = 0
        prompts = zip(batch.extend_prefix_lens_cpu, batch.extend_seq_lens_cpu, strict=True)
        # A batch that was padded for a graph has more rows than requests.
        for row, (prefix, length) in zip(range(len(batch.orig_seq_lens)), prompts, strict=False):
            total = prefix + length
            first = max(total // 2, prefix)
            fits = self.settings.min <= total <= self.settings.max
            if (
                fits
                and total - first >= LEAST_QUERIES
                and self.draw() < self.settings.share
                # A number on the device: read for those alone that were drawn.
                and int(batch.orig_seq_lens[row]) == total
            ):
                try:
                    part = self.folder.begin()
                except OSError as error:
                    self._give_up(error)
                    return None
                self._generator.seed()
                positions = Sampling().positions(total, self._generator, first=prefix)
                slots = req_to_token[batch.req_pool_indices[row], :total].long()
                return _Sample(part, start + positions - prefix, positions, slots, [])
            start += length
        return None

    def _write(self, sample: _Sample, layer: int, capture: Capture) -> None:
        if not all(x.isfinite().all() for x in (capture.q, capture.k, capture.v)):
            raise HataError(f"layer {layer}: expected finite queries, keys and values")
        self.folder.write(sample.part, layer, capture)

    def _finish(self, sample: _Sample) -> None:
        """In the writer's thread, behind all of a sample's writes."""
        try:
            for write in sample.writes:
                write.result()
            self.folder.finish(sample.part, self.settings.requests)
        # Whatever it is must not reach a request.
        except Exception as error:
            self.folder.drop(sample.part)
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        if not self._failed:
            logger.warning("hata: traffic: a sample could not be kept (said once): %s", error)
        self._failed = True
