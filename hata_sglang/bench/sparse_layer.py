"""The stages of a sparse layer that ``hata-sglang bench op`` times."""

from __future__ import annotations

import copy
import math

import torch

from hata_kernels.attend import AttendBuffers, attend
from hata_kernels.encoders import Queries
from hata_kernels.rank import RankBuffers, rank
from hata_kernels.rows import RowGroups, group_rows
from hata_sglang.bench.layer import (
    COLD_BYTES,
    RECENT,
    SINK,
    LayerBuffers,
    make_layers,
    random_encoder,
)
from hata_sglang.bench.scenarios import Scenario
from hata_sglang.decoding.gpu_buffers import may_share, rank_sizes

#: Bound of the selections per layer that attention is timed with.
MAX_TURNS = 32


class SparseLayer:
    """Our stages over some layers' buffers; steps take a layer's number.

    Parameters
    ----------
    scenario : Scenario
    """

    def __init__(self, scenario: Scenario) -> None:
        self.scenario, shape = scenario, scenario.shape
        batch, context = scenario.batch, scenario.context
        self.encoder = random_encoder(shape, scenario.method, scenario.bits)
        self.layers = make_layers(scenario, self.encoder)
        # Weights of its own for every layer: in a model, no layer finds them in the L2.
        self.encoders = [copy.deepcopy(self.encoder) for _ in self.layers]
        self.queries = [self.encoder.encode_queries(layer.q) for layer in self.layers]
        where = {"dtype": torch.int32, "device": self.layers[0].q.device}
        self.seq_lens = torch.full((batch,), context, **where)
        self.budgets = torch.full((batch,), scenario.k, **where)
        self.out = torch.empty_like(self.layers[0].q)
        self.scratch = self.encoder.step_scratch(batch)
        rows = batch * shape.kv_heads
        sizes = rank_sizes(self.encoder, context, scenario.k, batch)
        self.rank_buffers = RankBuffers(rows, sizes, self.out.device)
        self.attend_buffers = AttendBuffers(
            rows, shape.group, shape.dim, scenario.k, self.out.device
        )
        # As in an engine's step, which finds out on the device whether rows share anything.
        self.groups = None
        if may_share(batch, context):
            self.groups = RowGroups(batch, context, self.out.device)
            self.group(0)  # all layers have the same, each with slots of its own
        self.slots = [self.rank(i) for i in range(len(self.layers))]

    def _rank(self, i: int, queries: Queries, groups: RowGroups | None) -> torch.Tensor:
        layer = self.layers[i]
        return rank(
            queries.codes,
            layer.codes,
            layer.token_slots,
            self.seq_lens,
            self.budgets,
            plane_weights=self.encoder.plane_weights,
            sink=SINK,
            recent=RECENT,
            k_max=self.scenario.k,
            bias=queries.bias,
            buffers=self.rank_buffers,
            groups=groups,
        )

    def attend_over(self, layer: LayerBuffers, slots: torch.Tensor) -> None:
        """Attend over a selection of a layer's slots."""
        attend(
            layer.q,
            layer.k_cache,
            layer.v_cache,
            slots,
            self.seq_lens,
            self.budgets,
            scale=self.scenario.shape.dim**-0.5,
            out=self.out,
            buffers=self.attend_buffers,
        )

    def encode(self, i: int) -> Queries:
        """Codes of the step's keys, to their slots, and of its queries."""
        layer, encoder = self.layers[i], self.encoders[i]
        where = {"codes": layer.codes, "slots": layer.new_places, "scratch": self.scratch}
        return encoder.encode_step(layer.q, layer.new_k, **where)

    def rank(self, i: int) -> torch.Tensor:
        """Score and select."""
        return self._rank(i, self.queries[i], self.groups)

    def rank_apart(self, i: int) -> torch.Tensor:
        """Score and select, every row by itself."""
        return self._rank(i, self.queries[i], None)

    def group(self, i: int) -> None:
        """Find the rows that share a prefix: once for all layers of a step."""
        slots, context = self.layers[i].token_slots, self.scenario.context
        group_rows(slots, self.seq_lens, longest=context, groups=self.groups)

    def whole(self, i: int) -> None:
        """The layer: encode, score, select, attend."""
        self.attend_over(self.layers[i], self._rank(i, self.encode(i), self.groups))

    def cold_selections(self) -> list[tuple[LayerBuffers, torch.Tensor]]:
        """Layers with their own selections, then with random ones: too many to fit the L2.

        A whole layer reads all codes between two calls of its attention, which evicts the K and V
        of the first. Attention alone would find few rows in the L2 again.
        """
        scenario, heads = self.scenario, self.scenario.shape.kv_heads
        pairs = list(zip(self.layers, self.slots, strict=True))
        read = sum(slots.numel() for slots in self.slots) * 4 * scenario.shape.dim
        for _ in range(1, min(MAX_TURNS, math.ceil(COLD_BYTES / read))):
            for layer in self.layers:
                shape = (scenario.batch, heads, scenario.k)
                places = torch.randint(scenario.context, shape, device=self.out.device)
                slots = layer.token_slots[:, None, :].expand(-1, heads, -1)
                pairs.append((layer, slots.gather(2, places.sort(dim=-1).values).contiguous()))
        return pairs
