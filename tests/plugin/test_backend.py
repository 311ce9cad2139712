"""Who decodes a layer of a step: hata's sparse path, its dense kernel, or the inner backend."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from hata_kernels.attend import RATIOS
from hata_sglang.decoding import Batch, CpuDecoder, GpuDecoder, LayerCache, ValueSums
from hata_sglang.seams.retype import retype
from hata_sglang.shape import ModelShape

HQ, HKV, DIM, SHARED, ROWS = 4, 2, 64, 1024, 5
SCALE = 0.125
#: Slots of the step's new tokens.
NEWEST = torch.arange(2000, 2000 + ROWS)


class Inner:
    """A stock backend that says what it is asked."""

    def __init__(self) -> None:
        self.planned: list[tuple[int, bool]] = []

    def init_forward_metadata_out_graph(self, forward_batch, in_capture=False):
        self.planned.append((forward_batch.batch_size, in_capture))

    def forward_decode(self, q, k, v, layer, forward_batch, save_kv_cache=True, **kwargs):
        return "inner", save_kv_cache, kwargs

    def forward_extend(self, q, k, v, layer, forward_batch, save_kv_cache=True, **kwargs):
        forward_batch.pool.write_step(layer, NEWEST[: len(k)], k, v, codes=True)
        return "extended"


class Pool:
    """K and V of one layer."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.caches = [torch.randn(3000, HKV, DIM, generator=generator) for _ in "kv"]

    def write_step(self, layer, where, k, v, *, codes):
        for cache, new in zip(self.caches, (k, v), strict=True):
            cache[where] = new.view(-1, HKV, DIM)
        return k.view(-1, HKV, DIM), where

    def layer_cache(self, layer_id):
        return LayerCache(*self.caches)


@pytest.fixture(scope="module")
def seam():
    """`hata_sglang.seams.backend`; it imports all of SGLang's attention."""
    from hata_sglang.seams import cpu_preview

    cpu_preview.enable()
    from hata_sglang.seams import backend

    return backend


@pytest.fixture
def backend(monkeypatch, seam):
    """Layers 0 and 1 dense, 0 alone hata's, 2 sparse by position."""
    from hata_sglang.config import HataConfig

    monkeypatch.setattr(seam.versions, "write_loc", lambda batch: NEWEST[: batch.batch_size])
    settings = {"method": "streaming", "budget": 100, "dense_layers": [0, 1]}
    plans = HataConfig.parse(settings).resolve(3, 4096)
    made = Inner()
    retype(made, seam.HataMethods)
    made.hata_plans, made.hata_pool = {0: plans[0], 2: plans[2]}, Pool()
    made.hata_alone, made._hata_eager = set(), False
    made.hata_decoder = GpuDecoder(
        [plans[2]],
        dict.fromkeys(range(3), SCALE),
        {},
        ModelShape(HQ, HKV, DIM, num_layers=8, context_len=4096),
        device=torch.device("cpu"),
        dense=[0],
    )
    return made


def make_batch(rows: int) -> Batch:
    """Rows of 1,025 tokens, all but the newest shared."""
    slots = torch.arange(1, SHARED + 1).repeat(rows, 1)
    table = torch.cat([slots, NEWEST[:rows, None]], dim=1).int()
    lengths = torch.full((rows,), SHARED + 1)
    return Batch(table, torch.arange(rows), lengths, lengths)


def prepare(backend, rows: int) -> torch.Tensor:
    """Make ready for an eager step of such rows; return their slots."""
    batch = make_batch(rows)
    backend.hata_decoder.prepare(batch, graph=False)
    return batch.req_to_token


def graph_step(backend, rows: int, *, in_capture: bool) -> None:
    """What SGLang calls before it captures a step of such rows, or replays it."""
    batch = make_batch(rows)
    backend.hata_requests = SimpleNamespace(req_to_token=batch.req_to_token)
    forward_batch = SimpleNamespace(
        batch_size=rows,
        forward_mode=SimpleNamespace(is_decode=lambda: True),
        req_pool_indices=batch.rows,
        seq_lens=batch.seq_lens,
        seq_lens_cpu=batch.seq_lens_cpu,
    )
    backend.init_forward_metadata_out_graph(forward_batch, in_capture=in_capture)


def decode(backend, layer: int, rows: int = ROWS, **more):
    generator = torch.Generator().manual_seed(layer)
    q, k, v = (torch.randn(rows, n * DIM, generator=generator) for n in (HQ, HKV, HKV))
    shape = {"tp_q_head_num": HQ, "tp_k_head_num": HKV, "head_dim": DIM}
    layer = SimpleNamespace(layer_id=layer, **shape)
    forward_batch = SimpleNamespace(batch_size=rows)
    return (q, k, v), backend.forward_decode(q, k, v, layer, forward_batch, **more)


@pytest.mark.parametrize("rows", [ROWS, 1], ids=["users-of-one-document", "one-row"])
def test_a_plain_dense_layer_is_decoded_by_hata(backend, rows):
    table = prepare(backend, rows)
    (q, k, v), out = decode(backend, 0, rows)
    keys, values = backend.hata_pool.caches
    assert torch.equal(keys[NEWEST[:rows]].view(rows, -1), k)
    assert torch.equal(values[NEWEST[:rows]].view(rows, -1), v)
    groups = HQ // HKV
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.view(rows, HQ, 1, DIM),
        keys[table.long()].transpose(1, 2).repeat_interleave(groups, 1),
        values[table.long()].transpose(1, 2).repeat_interleave(groups, 1),
        scale=SCALE,
    )
    torch.testing.assert_close(out, expected.reshape(rows, HQ * DIM))


def test_a_budget_that_covers_the_context_changes_nothing(backend):
    """Of a sparse layer no step is the inner backend's, on a CPU either."""
    plan = backend.hata_plans[2]
    backend.hata_decoder = CpuDecoder([plan], dict.fromkeys(range(3), SCALE), {})
    batch = make_batch(ROWS)
    batch.seq_lens = batch.seq_lens_cpu = torch.full((ROWS,), 60)  # the budget is 100
    backend.hata_decoder.prepare(batch)
    _, out = decode(backend, 2)
    assert out[0] != "inner"
    assert out.shape == (ROWS, HQ * DIM)


def test_what_the_inner_backend_decodes(backend):
    prepare(backend, ROWS)
    assert decode(backend, 1)[1] == ("inner", True, {})  # not plain softmax, say
    sinks = {"sinks": torch.ones(HQ)}
    assert decode(backend, 0, **sinks)[1] == ("inner", True, sinks)
    assert decode(backend, 0, save_kv_cache=False)[1] == ("inner", False, {})


def test_a_replay_plans_what_its_capture_ran(backend):
    backend.hata_decoder.allocate_static(ROWS)
    for rows, layers in ((ROWS, (0, 1, 2)), (3, (0, 2)), (1, (0, 2))):
        graph_step(backend, rows, in_capture=True)
        for layer in layers:
            decode(backend, layer, rows)
    captures = [(ROWS, True), (3, True), (1, True)]
    assert backend.planned == captures
    for rows in (ROWS, 3, 1):
        graph_step(backend, rows, in_capture=False)
        lengths = backend.hata_decoder.buffers.seq_lens[:rows]
        assert lengths.tolist() == [SHARED + 1] * rows  # hata's own buffers are filled
    # Layer 1 of five rows is the inner backend's.
    assert backend.planned == [*captures, (ROWS, False)]


def test_values_are_summed_once_the_inner_backend_wrote_a_prompt(backend):
    plan = dataclasses.replace(backend.hata_plans[2], left_out="mean")
    backend.hata_plans[2] = plan
    shape = ModelShape(HQ, HKV, DIM, num_layers=8, context_len=4096)
    sums = ValueSums({2: torch.rand(HQ, RATIOS)}, 9, shape, "cpu")
    backend.hata_decoder.value_sums = sums
    batch = make_batch(ROWS)
    rows = torch.tensor([5, 1, 8, 2, 7])
    table = torch.zeros(9, SHARED + 1, dtype=torch.int32)
    table[rows] = batch.req_to_token
    backend.hata_requests = SimpleNamespace(req_to_token=table)
    forward_batch = SimpleNamespace(
        batch_size=ROWS,
        req_pool_indices=rows,
        seq_lens=batch.seq_lens,
        seq_lens_cpu=batch.seq_lens_cpu,
        pool=backend.hata_pool,
    )
    k, v = torch.randn(2, ROWS, HKV * DIM).unbind()
    for number in (0, 2):  # a layer without sums, and one with
        layer = SimpleNamespace(layer_id=number)
        assert backend.forward_extend(None, k, v, layer, forward_batch) == "extended"
    values = backend.hata_pool.caches[1]
    assert torch.equal(values[NEWEST].view(ROWS, -1), v)
    expected = torch.zeros(9, HKV, DIM)
    expected[rows] = values[batch.req_to_token.long()].sum(1)
    torch.testing.assert_close(sums.sums[2], expected, rtol=1e-4, atol=1e-4)


def test_a_sparse_layer_reads_its_budget(backend):
    prepare(backend, ROWS)
    before = [cache.clone() for cache in backend.hata_pool.caches]
    _, out = decode(backend, 2)
    assert out.shape == (ROWS, HQ * DIM)
    # Tokens between sink and recent are not read: they may be anything.
    keys, values = backend.hata_pool.caches
    keys[20:900], values[20:900] = float("nan"), float("nan")
    _, again = decode(backend, 2)
    assert torch.equal(out, again)
    assert not torch.equal(before[0], keys)
