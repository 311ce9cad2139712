"""The steps that ``hata-sglang bench op`` times: a sparse layer's stages, and the dense peer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch

from hata_kernels.attend import AttendBuffers, DenseBuffers, attend, attend_dense, fits_dense
from hata_kernels.rank import RankBuffers, rank
from hata_kernels.rows import RowGroups, group_rows
from hata_sglang.bench import layer as buffers
from hata_sglang.bench.layer import (
    COLD_BYTES,
    RECENT,
    SINK,
    LayerBuffers,
    make_layers,
    random_encoder,
)
from hata_sglang.bench.op_rows import DENSE_LAYER
from hata_sglang.bench.shapes import Scenario
from hata_sglang.bench.timing import Timing, kernel_times, time_layers
from hata_sglang.decoding.gpu_buffers import may_share, rank_sizes

Step = Callable[[int], object]
#: The launches of the ranking, in order.
RANK_KERNELS = ("floor_kernel", "shared_kernel", "filter_kernel", "take_kernel")
#: Bound of the selections per layer that attention is timed with.
MAX_TURNS = 32
FLASHINFER_WORKSPACE = 256 * 2**20


class SparseLayer:
    """Our stages over some layers' buffers; each step takes a layer's number.

    Parameters
    ----------
    scenario : Scenario
    like : SparseLayer, optional
        Of a scenario with the same `Scenario.buffers`: its layers are used. Default: new ones.
    """

    def __init__(self, scenario: Scenario, like: SparseLayer | None = None) -> None:
        self.scenario = scenario
        where = {"device": buffers.DEVICE, "dtype": torch.int32}
        if like is None:
            self.encoder = random_encoder(scenario.shape, scenario.method, scenario.bits)
            self.layers = make_layers(scenario, self.encoder)
            # Weights of its own for every layer: in a model, no layer finds them in the L2.
            self.encoders = [copy.deepcopy(self.encoder) for _ in self.layers]
            self.q_codes = [self.encoder.encode_queries(layer.q) for layer in self.layers]
            self.seq_lens = torch.full((scenario.batch,), scenario.context, **where)
            self.out = torch.empty_like(self.layers[0].q)
        else:
            self.encoder, self.layers, self.encoders = like.encoder, like.layers, like.encoders
            self.q_codes, self.seq_lens, self.out = like.q_codes, like.seq_lens, like.out
        self.budgets = torch.full((scenario.batch,), scenario.k, **where)
        self.scratch = self.encoder.step_scratch(scenario.batch)
        rows = scenario.batch * scenario.shape.kv_heads
        sizes = rank_sizes(self.encoder, scenario.context, scenario.k, scenario.batch)
        self.rank_buffers = RankBuffers(rows, sizes, self.out.device)
        # As in an engine's step, which finds out on the device whether rows share anything.
        self.groups = None
        if may_share(scenario.batch, scenario.context):
            self.groups = RowGroups(scenario.batch, scenario.context, self.out.device)
            self.group(0)  # all layers have the same, each with slots of its own
        shape = (scenario.shape.group, scenario.shape.dim, scenario.k)
        self.attend_buffers = AttendBuffers(rows, *shape, self.out.device)
        pairs = zip(self.layers, self.q_codes, strict=True)
        self.slots = [self._rank(layer, q, self.groups) for layer, q in pairs]

    def _rank(
        self, layer: LayerBuffers, q_codes: torch.Tensor, groups: RowGroups | None
    ) -> torch.Tensor:
        return rank(
            q_codes,
            layer.codes,
            layer.token_slots,
            self.seq_lens,
            self.budgets,
            plane_weights=self.encoder.plane_weights,
            sink=SINK,
            recent=RECENT,
            k_max=self.scenario.k,
            buffers=self.rank_buffers,
            groups=groups,
        )

    def _attend(self, layer: LayerBuffers, slots: torch.Tensor) -> None:
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

    def encode(self, i: int) -> torch.Tensor:
        """Codes of the step's keys, to their slots, and of its queries."""
        layer, encoder = self.layers[i], self.encoders[i]
        where = {"codes": layer.codes, "slots": layer.new_places, "scratch": self.scratch}
        return encoder.encode_step(layer.q, layer.new_k, **where)

    def rank(self, i: int) -> torch.Tensor:
        """Score and select."""
        return self._rank(self.layers[i], self.q_codes[i], self.groups)

    def rank_apart(self, i: int) -> torch.Tensor:
        """Score and select, every row by itself."""
        return self._rank(self.layers[i], self.q_codes[i], None)

    def group(self, i: int) -> None:
        """Find the rows that share a prefix: once for all layers of a step."""
        slots, context = self.layers[i].token_slots, self.scenario.context
        group_rows(slots, self.seq_lens, longest=context, groups=self.groups)

    def attend(self, i: int) -> None:
        """Attend over a selection made before."""
        self._attend(self.layers[i], self.slots[i])

    def whole(self, i: int) -> None:
        """The layer: encode, score, select, attend."""
        layer = self.layers[i]
        self._attend(layer, self._rank(layer, self.encode(i), self.groups))

    def attend_cold(self) -> tuple[Step, int]:
        """Attention that finds no row in the L2: over so many selections that they do not fit.

        A whole layer reads all codes between two calls of its attention, which evicts the K and V
        of the first. Attention alone would find few rows in the L2 again.

        Returns
        -------
        step : callable
            Takes the number of a selection: the layers' own, then random ones of each layer.
        count : int
            Selections.
        """
        read = len(self.layers) * self.scenario.bytes_read["attend"]
        turns = min(MAX_TURNS, math.ceil(COLD_BYTES / read))
        pairs = list(zip(self.layers, self.slots, strict=True))
        for _ in range(1, turns):
            pairs += [(layer, self._random_slots(layer)) for layer in self.layers]
        return (lambda i: self._attend(*pairs[i])), len(pairs)

    def _random_slots(self, layer: LayerBuffers) -> torch.Tensor:
        """``[batch, kv_heads, k]`` int32 slots of random tokens, in position order."""
        scenario = self.scenario
        shape = (scenario.batch, scenario.shape.kv_heads, scenario.k)
        places = torch.randint(scenario.context, shape, device=buffers.DEVICE).sort(dim=-1).values
        slots = layer.token_slots[:, None, :].expand(-1, scenario.shape.kv_heads, -1)
        return slots.gather(2, places).contiguous()


def has_dense_step(sparse: SparseLayer) -> bool:
    """Whether `dense_layer_step` has kernels for the layer; on a CPU it is the reference."""
    shape, device = sparse.scenario.shape, sparse.out.device
    return device.type == "cpu" or fits_dense(shape.q_heads, shape.kv_heads, shape.dim, device)


def dense_layer_step(sparse: SparseLayer) -> Step:
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


def dense_step(sparse: SparseLayer, tensor_cores: bool) -> Step:
    """FlashInfer's dense decode of the same buffers, page size 1."""
    import flashinfer

    scenario, layers = sparse.scenario, sparse.layers
    batch, where = scenario.batch, {"dtype": torch.int32, "device": buffers.DEVICE}
    # One for all layers, as in SGLang: they run one after the other.
    workspace = torch.zeros(FLASHINFER_WORKSPACE, dtype=torch.uint8, device=buffers.DEVICE)
    wrappers = []
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


def time_stages(sparse: SparseLayer) -> dict[str, Timing]:
    """Time every stage, the launches of the ranking (``rank/filter_kernel``), and the layer."""
    count = len(sparse.layers)
    times = {
        "encode": time_layers(sparse.encode, count),
        "rank": time_layers(sparse.rank, count),
        "attend": time_layers(*sparse.attend_cold()),
        "layer": time_layers(sparse.whole, count),
    }
    if sparse.scenario.shared and sparse.groups is not None:
        times["group rows"] = time_layers(sparse.group, count)
        times["rank, rows apart"] = time_layers(sparse.rank_apart, count)
    if has_dense_step(sparse):
        times[DENSE_LAYER] = time_layers(dense_layer_step(sparse), count)
    launches = kernel_times(sparse.rank, count, RANK_KERNELS)
    return times | {f"rank/{name}": timing for name, timing in launches.items()}
