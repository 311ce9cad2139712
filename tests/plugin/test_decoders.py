"""Decoders against brute force: every method, rows of mixed lengths, one selection per KV head."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from decoder_cases import BUDGETS, DIM, HKV, HQ, LAYER, LENGTHS, METHODS, SCALE, SLOTS, Step
from torch.utils._python_dispatch import TorchDispatchMode

from hata_kernels.attend import RATIOS, attend_naive
from hata_sglang.config import LayerPlan
from hata_sglang.decoding import (
    Batch,
    CpuDecoder,
    GpuDecoder,
    LayerCache,
    ValueSums,
    gpu_buffers,
)
from hata_sglang.decoding.gpu_buffers import Buffers, BufferSizes
from hata_sglang.decoding.planned import PlannedAttention
from hata_sglang.shape import ModelShape


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", METHODS)
def test_cpu_attends_over_what_the_method_chooses(name, budget):
    step = Step(name, budget)
    out = step.decode(CpuDecoder([step.plan], {LAYER: SCALE}, step.encoders))
    torch.testing.assert_close(out, step.expected(), atol=1e-5, rtol=1e-4)
    dense = step.expected(every_token=True)
    assert [torch.allclose(a, b, atol=1e-3) for a, b in zip(out, dense, strict=True)] == [
        step.plan.budget.tokens(length) == length for length in LENGTHS
    ]


def test_methods_choose_differently():
    """Equal outputs would mean that a method was not used; random has the weights of hata here."""
    outputs = []
    for name in METHODS.keys() - {"random"}:
        step = Step(name, "fixed")
        decoder = CpuDecoder([step.plan], {LAYER: SCALE}, step.encoders)
        outputs.append(step.decode(decoder)[-1])
    for i, one in enumerate(outputs):
        assert not any(torch.allclose(one, other, atol=1e-3) for other in outputs[:i])


def test_layers_of_all_methods_share_one_step():
    """Each layer gets what it gets alone, whatever dtype and budget its neighbours have."""
    steps = [Step(name, budget) for name in METHODS for budget in BUDGETS]
    first = steps[0]
    for layer, step in enumerate(steps):
        step.plan = dataclasses.replace(step.plan, layer=layer)
    encoders = {n: step.encoder for n, step in enumerate(steps) if step.encoder}
    decoder = CpuDecoder(
        [step.plan for step in steps], dict.fromkeys(range(len(steps)), SCALE), encoders
    )
    decoder.prepare(first.batch)
    for step in steps:
        out = decoder.decode(step.plan, step.q, step.cache)
        torch.testing.assert_close(out, step.expected(), atol=1e-5, rtol=1e-4)


class Operations(TorchDispatchMode):
    """Counts what PyTorch is asked to do."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("rows", "most"), [([4], 8), ([5], 8), ([1], 14), ([4, 5], 8)])
@pytest.mark.parametrize("name", ["hata", "hata, 8-bit scales", "asymmetric", "random"])
def test_a_layer_on_a_cpu_is_a_few_calls(name, rows, most):
    """Of small PyTorch calls there were about a hundred, more than half of a layer's time."""
    step = Step(name, "fixed")
    parts = (step.batch.rows, step.batch.seq_lens, step.batch.seq_lens_cpu)
    step.batch = Batch(step.batch.req_to_token, *(part[rows] for part in parts))
    expected, step.q = step.expected()[rows], step.q[rows]
    decoder = CpuDecoder([step.plan], {LAYER: SCALE}, step.encoders)
    step.decode(decoder)  # the first layer of a step makes what others share
    with Operations() as operations:
        out = decoder.decode(step.plan, step.q, step.cache)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
    assert len(operations.names) <= most, operations.names


def test_buffers_may_be_others():
    """A layer whose pool is a new one reads that."""
    step, other = Step("hata", "fixed"), Step("hata", "fixed")
    other.k, other.v = other.k.flip(0), other.v.flip(0)
    other.encoder.encode_keys(other.k, codes=other.codes, slots=torch.arange(SLOTS))
    decoder = CpuDecoder([step.plan], {LAYER: SCALE}, step.encoders)
    for one in (step, other, step):
        torch.testing.assert_close(one.decode(decoder), one.expected(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["hata", "streaming"])
def test_what_is_compiled_is_loaded_with_a_word(caplog, name):
    step = Step(name, "fixed")
    with caplog.at_level("INFO"):
        CpuDecoder([step.plan], {LAYER: SCALE}, step.encoders)
    lines = [record.getMessage() for record in caplog.records]
    if name == "streaming":
        assert lines == []
        return
    before, after = lines
    assert before == "hata: loading the CPU kernels; the first start on a machine compiles them"
    assert re.fullmatch(r"hata: CPU kernels ready after [\d.]+ s: (read|compiled).*", after)


def make_gpu_decoder(steps, device="cuda", dense=(), attend="triton", **more):
    """Decoder of one layer per step, and of dense layers."""
    encoders = {step.plan.layer: step.encoder for step in steps if step.encoder}
    plans = [step.plan for step in steps]
    scales = dict.fromkeys([*(plan.layer for plan in plans), *dense], SCALE)
    shape, device = ModelShape(HQ, HKV, DIM, num_layers=8, context_len=256), torch.device(device)
    planned = None
    if attend == "flashinfer":
        where = {"dtype": steps[0].q.dtype, "device": device}
        planned = PlannedAttention(plans, scales, shape, **where)
    more |= {"device": device, "dense": dense, "planned": planned}
    return GpuDecoder(plans, scales, encoders, shape, **more)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", METHODS)
def test_gpu_decoder_with_the_references(name, budget):
    """The GPU's decoder runs on a CPU too, where every kernel is its reference."""
    step = Step(name, budget)
    decoder = make_gpu_decoder([step], "cpu")
    eager = step.decode(decoder, graph=False)
    torch.testing.assert_close(eager, step.expected(), atol=1e-5, rtol=1e-4)
    decoder.allocate_static(len(LENGTHS) + 3)
    torch.testing.assert_close(step.decode(decoder, graph=True), eager)


@pytest.mark.parametrize("device", ["cpu", "gpu", "gpu, graph"])
@pytest.mark.parametrize("name", ["hata", "hashattention", "asymmetric, 16-bit scales"])
def test_two_steps_with_the_mean_of_the_values_left_out(name, device):
    """Sums start at the prompts, without the tokens that the two steps decode."""
    step = Step(name, "ratio")
    step.plan = dataclasses.replace(step.plan, left_out="mean")
    shape = ModelShape(HQ, HKV, DIM, num_layers=8, context_len=256)
    sums = ValueSums({LAYER: torch.rand(HQ, RATIOS)}, len(step.batch.req_to_token), shape, "cpu")
    if device == "cpu":
        decoder = CpuDecoder([step.plan], {LAYER: SCALE}, step.encoders, value_sums=sums)
    else:
        decoder = make_gpu_decoder([step], "cpu", value_sums=sums)
        decoder.allocate_static(len(LENGTHS) + 2)
    graph = {"graph": device == "gpu, graph"}
    last, long = step.batch, [row for row, length in enumerate(LENGTHS) if length > 2]
    rows = last.rows[long]
    for back in (2, 1, 0):
        lengths = torch.tensor([LENGTHS[row] - back for row in long])
        step.batch = Batch(last.req_to_token, rows, lengths, lengths)
        if back == 2:
            sums.recount(LAYER, step.v, step.batch)
            continue
        step.batch, queries = step.batch, step.q[long]
        decoder.prepare(step.batch, **graph)
        out = decoder.decode(step.plan, queries, step.cache)
    expected = step.expected(mean=sums.weights[LAYER])[long]
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(expected, step.expected()[long], atol=1e-3)
    after = sums.sums[LAYER].clone()
    sums.recount(LAYER, step.v, step.batch)
    torch.testing.assert_close(after, sums.sums[LAYER])
    assert not sums.sums[LAYER][[4, 6]].any()  # requests that no row is of


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", METHODS)
def test_gpu_decoder_where_all_rows_are_short(name, budget, monkeypatch):
    """Buffers of an eager step that are as wide as its longest row, below every budget."""
    monkeypatch.setattr(gpu_buffers, "EAGER_STEP", 1)
    step = Step(name, budget)
    short = [row for row, length in enumerate(LENGTHS) if length <= 5]
    whole = step.expected(every_token=True)[short]
    batch, step.q = step.batch, step.q[short]
    parts = (batch.rows, batch.seq_lens, batch.seq_lens_cpu)
    step.batch = Batch(batch.req_to_token, *(part[short] for part in parts))
    out = step.decode(make_gpu_decoder([step], "cpu"), graph=False)
    torch.testing.assert_close(out, whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method[1]])
def test_a_step_encodes_its_keys(name, device):
    step = Step(name, "ratio")
    codes, scales = step.codes.clone(), None if step.scales is None else step.scales.clone()
    newest = torch.tensor([slots[-1] for slots in step.slots])
    step.codes[newest] = -1
    if device == "cpu":
        decoder = CpuDecoder([step.plan], {LAYER: SCALE}, step.encoders)
    else:
        decoder = make_gpu_decoder([step], "cpu")
    decoder.prepare(step.batch, graph=False)
    new_keys = (step.k[newest], newest)
    out = decoder.decode(step.plan, step.q, step.cache, new_keys)
    assert torch.equal(step.codes, codes)
    assert scales is None or torch.equal(step.scales, scales)
    torch.testing.assert_close(out, step.expected(), atol=1e-5, rtol=1e-4)


def test_width_of_an_eager_step():
    widths = [gpu_buffers.eager_width(longest, 131000) for longest in (1, 16384, 16385, 131000)]
    assert widths == [16384, 16384, 32768, 131000]
    assert gpu_buffers.eager_width(3, 256) == 256


def held_bytes(buffers) -> int:
    """Bytes of all tensors that an object holds, directly or in others of this package."""
    if isinstance(buffers, torch.Tensor):
        return buffers.nbytes
    if isinstance(buffers, dict):
        return sum(map(held_bytes, buffers.values()))
    return sum(map(held_bytes, vars(buffers).values())) if hasattr(buffers, "__dict__") else 0


@pytest.mark.parametrize("dense", [False, True], ids=["all-sparse", "some-dense"])
@pytest.mark.parametrize(("bs", "width"), [(3, 256), (5, 2048)], ids=["small", "may-share"])
@pytest.mark.parametrize("names", [*[[name] for name in METHODS], list(METHODS)])
def test_graph_memory_is_counted(names, bs, width, dense):
    """What is counted: the buffers themselves, the largest selection, and top-k's scratch."""
    steps = [Step(name, budget) for name in names for budget in BUDGETS]
    for layer, step in enumerate(steps):
        step.plan = dataclasses.replace(step.plan, layer=layer)
    decoder = make_gpu_decoder(steps, "cpu")
    kinds = (decoder.plans, decoder.encoders, decoder.shape)
    sizes = BufferSizes.of(*kinds, bs=bs, width=width, dense=dense)
    buffers = Buffers(sizes, decoder.budgets, decoder.device)
    buffers.budgets.clear()  # a few bytes per row, as are the shares'
    buffers.share_budgets = None
    extra = sizes.nbytes - held_bytes(buffers)
    assert extra == bs * HKV * (4 * 45 + 16 * width * ("exact" in names))
    with_codes = not {"exact", "streaming"}.issuperset(names)
    assert (buffers.groups is not None) == (bs == 5 and (with_codes or dense))
    assert (buffers.dense is not None) == dense


def test_users_of_one_document_decode_a_dense_layer():
    """Five rows share 1,100 slots, one is apart; the layer beside the sparse one is dense."""
    step = Step("hata", "fixed")
    generator = torch.Generator().manual_seed(7)
    lengths = torch.tensor([1130, 1101, 1200, 1125, 1180, 1300])
    caches = [torch.randn(9000, HKV, DIM, generator=generator) for _ in "kv"]
    order = (torch.randperm(8999, generator=generator) + 1).int()
    table, apart = torch.zeros(8, 1300, dtype=torch.int32), order[1100:]
    for place, (row, length) in enumerate(zip(step.rows, lengths, strict=True)):
        own, apart = apart[:length], apart[length:]
        table[row, :length] = own
        if place < 5:
            table[row, :1100] = order[:1100]
    step.batch = Batch(table, step.rows, lengths, lengths.clone())
    encoders, plans = step.encoders, [step.plan]
    decoder = GpuDecoder(
        plans,
        {LAYER: SCALE, 1: SCALE},
        encoders,
        ModelShape(HQ, HKV, DIM, num_layers=8, context_len=2048),
        device=torch.device("cpu"),
        dense=[1],
    )
    for graph in (False, True):
        if graph:
            decoder.allocate_static(8)
        decoder.prepare(step.batch, graph=graph)
        assert decoder.groups.shared[:6].tolist() == [1024] * 5 + [0]
        out = decoder.decode(LayerPlan(1, dense=True), step.q, LayerCache(*caches))
        for place, (row, length) in enumerate(zip(step.rows, lengths, strict=True)):
            slots = table[row, :length].expand(HKV, -1)[None].contiguous()
            counts = lengths[place : place + 1]
            tokens = (step.q[place : place + 1], *caches, slots, counts)
            expected = attend_naive(*tokens, scale=SCALE)
            torch.testing.assert_close(out[place], expected[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_rows_that_share_nothing_decode_a_dense_layer(graph):
    step = Step("hata", "fixed")
    decoder = make_gpu_decoder([step], "cpu", dense=[1])
    if graph:
        decoder.allocate_static(len(LENGTHS) + 3)
    step.decode(decoder, graph=graph)
    assert decoder.groups is None  # shorter than what a group shares
    out = decoder.decode(LayerPlan(1, dense=True), step.q, step.cache)
    expected = step.expected(every_token=True)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("attend", ["triton", "flashinfer"])
def test_gpu_attends_over_what_the_method_chooses(attend, name, budget, graph):
    step = Step(name, budget, "cuda", torch.bfloat16)
    decoder = make_gpu_decoder([step], attend=attend)
    if graph:
        decoder.allocate_static(len(LENGTHS))
        real, lengths = step.batch, torch.ones(len(LENGTHS), dtype=torch.int64)
        step.batch = Batch(real.req_to_token, real.rows * 0, lengths.cuda(), lengths)
        step.decode(decoder, graph=True)  # compiles before the capture
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            out = decoder.decode(step.plan, step.q, step.cache)
        step.batch = real
        decoder.prepare(real, graph=True)
        captured.replay()
    else:
        out = step.decode(decoder, graph=False)
    torch.testing.assert_close(out, step.expected(), atol=2e-2, rtol=2e-2)


@pytest.mark.gpu
def test_replays_keep_sums_up():
    """A graph that is captured on padding adds the values of the steps that it is replayed for."""
    step = Step("hata", "ratio", "cuda", torch.bfloat16)
    step.plan = dataclasses.replace(step.plan, left_out="mean")
    shape = ModelShape(HQ, HKV, DIM, num_layers=8, context_len=256)
    weights = {LAYER: torch.rand(HQ, RATIOS)}
    sums = ValueSums(weights, len(step.batch.req_to_token), shape, "cuda")
    sums.warm(torch.bfloat16)
    decoder = make_gpu_decoder([step], value_sums=sums)
    bs = len(LENGTHS) + 2
    decoder.allocate_static(bs)
    real, queries = step.batch, step.q
    # The last requests are the rows'; request 6 has no tokens, and is this test's padding.
    ones = torch.ones(bs, dtype=torch.int64)
    padding = Batch(real.req_to_token, ones.cuda() * 6, ones.cuda(), ones)
    step.q = torch.cat([queries, queries[:2]])
    decoder.prepare(padding, graph=True)
    decoder.decode(step.plan, step.q, step.cache)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        out = decoder.decode(step.plan, step.q, step.cache)
    assert not sums.sums[LAYER][1:].any()
    last = torch.tensor([*LENGTHS, 1, 1])
    rows = torch.cat([real.rows, padding.rows[:2]])
    for back in (2, 1, 0):
        lengths = (last - back).clamp_min(1)
        batch = Batch(real.req_to_token, rows, lengths.cuda(), lengths)
        if back == 2:  # a graph's padding has no prompt
            prompts = (real.rows, lengths[:-2].cuda(), lengths[:-2])
            sums.recount(LAYER, step.v, Batch(real.req_to_token, *prompts))
        else:
            decoder.prepare(batch, graph=True)
            captured.replay()
    step.q = queries
    expected = step.expected(mean=weights[LAYER])
    long = [row for row, length in enumerate(LENGTHS) if length > 2]
    torch.testing.assert_close(out[long], expected[long], atol=2e-2, rtol=2e-2)
    assert not sums.sums[LAYER][6].any()
    found = sums.sums[LAYER][real.rows[long]].clone()
    sums.recount(LAYER, step.v, real)
    torch.testing.assert_close(found, sums.sums[LAYER][real.rows[long]], atol=1e-3, rtol=1e-4)
