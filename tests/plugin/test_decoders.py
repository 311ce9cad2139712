"""Decoders against brute force: every method, rows of mixed lengths, one selection per KV head."""

from __future__ import annotations

import dataclasses
import math
import re
from itertools import product

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hata_kernels.attend import attend_naive
from hata_kernels.encoders import make_encoder
from hata_sglang.config import HataConfig
from hata_sglang.decoding import Batch, CpuDecoder, GpuDecoder, LayerCache, gpu_buffers
from hata_sglang.decoding.gpu_buffers import Buffers, BufferSizes
from hata_sglang.shape import ModelShape

HQ, HKV, DIM, LAYER = 6, 2, 64, 0
GROUP, SINK, RECENT = HQ // HKV, 4, 8
LENGTHS = (1, 5, 40, 41, 130, 200)
SLOTS = 700
SCALE = 1 / math.sqrt(DIM)
BUDGETS = {"fixed": 40, "ratio": {"ratio": 0.25, "min": 20, "max": 45}}


def rand(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


LINEAR = {"weight": rand(HKV, DIM, 64)}
STEP = {"scale_step": torch.full((HKV,), 0.05)}
ASYMMETRIC = {
    "key_weight": rand(HKV, DIM, 64),
    "key_bias": rand(HKV, 64),
    "query_weight": rand(HKV, GROUP * DIM, 64),
    "query_bias": rand(HKV, 64),
}
MLP = {
    f"{side}.{n}.{name}": rand(*shape)
    for side, n in product(("key", "query"), (0, 1))
    for name, shape in (("weight", (HQ, (DIM, 16)[n], (16, 32)[n])), ("bias", (HQ, (16, 32)[n])))
}
#: Case -> method, tensors and options of its encoder.
METHODS = {
    "hata": ("hata", LINEAR, {}),
    "hata, 8-bit scales": ("hata", LINEAR | STEP, {"scale_bits": 8}),
    "hashattention": ("hashattention", MLP, {}),
    "asymmetric": ("asymmetric", ASYMMETRIC, {"query_bits": 3}),
    "asymmetric, 16-bit scales": ("asymmetric", ASYMMETRIC | STEP, {"scale_bits": 16}),
    "random": ("random", LINEAR, {}),
    "exact": ("exact", None, {}),
    "streaming": ("streaming", None, {}),
}


def make_plan(method: str, budget):
    settings = {"method": method, "budget": budget, "sink": SINK, "recent": RECENT}
    if method in ("hata", "hashattention", "asymmetric"):
        settings["weights"] = "not read here"
    (plan,) = HataConfig.parse({**settings, "dense_layers": []}).resolve(1, 256)
    return plan


class Step:
    """One decode step: keys and values in scattered slots, their codes, and queries."""

    def __init__(self, name: str, budget: str, device: str = "cpu", dtype=torch.float32):
        method, tensors, options = METHODS[name]
        self.plan = make_plan(method, BUDGETS[budget])
        generator = torch.Generator().manual_seed(5)
        self.k, self.v, self.q = (
            torch.randn(n, heads, DIM, generator=generator).to(device, dtype)
            for n, heads in ((SLOTS, HKV), (SLOTS, HKV), (len(LENGTHS), HQ))
        )
        self.encoder = self.codes = self.scales = None
        if tensors is not None:
            shape = {"num_kv_heads": HKV, "group": GROUP, "head_dim": DIM}
            self.encoder = make_encoder(method, tensors, **shape, **options).to(device, dtype)
            words = self.encoder.words
            self.codes = torch.zeros(SLOTS, HKV, words, dtype=torch.int32, device=device)
            if self.encoder.scale_bits:
                self.scales = torch.zeros(SLOTS, HKV, dtype=self.encoder.scale_dtype, device=device)
            every = torch.arange(SLOTS, device=device)
            self.encoder.encode_keys(self.k, codes=self.codes, slots=every, scales=self.scales)
        # Rows of requests in another order than the requests', with slots all over the pool.
        order = torch.randperm(SLOTS - 1, generator=generator).int() + 1
        self.rows = torch.tensor([3, 0, 7, 2, 5, 1])
        table = torch.zeros(8, 256, dtype=torch.int32)
        self.slots = list(order[: sum(LENGTHS)].split(LENGTHS))
        for row, slots in zip(self.rows, self.slots, strict=True):
            table[row, : len(slots)] = slots
        lengths = torch.tensor(LENGTHS)
        self.batch = Batch(
            table.to(device), self.rows.to(device), lengths.to(device), lengths.clone()
        )

    def decode(self, decoder, **prepare):
        decoder.prepare(self.batch, **prepare)
        return decoder.decode(self.plan, self.q, self.cache)

    @property
    def cache(self):
        return LayerCache(self.k, self.v, self.codes, self.scales)

    @property
    def encoders(self):
        return {} if self.encoder is None else {LAYER: self.encoder}

    def scores(self, row: int, head: int) -> torch.Tensor:
        """Score of every token of a row for one KV head, as the readable definitions say."""
        slots = self.slots[row].to(self.q.device)
        group = slice(head * GROUP, (head + 1) * GROUP)
        keys, queries = self.k[slots, head].float(), self.q[row, group].float()
        if self.encoder is None:
            return (queries @ keys.T * SCALE).softmax(-1).sum(0)
        bits, planes = unpack(self.codes[slots, head]), self.planes()[row, head]
        weights = torch.tensor(self.encoder.plane_weights, device=bits.device)
        agreement = ((bits[:, None] == planes).sum(-1) * weights).sum(-1)
        if self.scales is None:
            return agreement
        full = self.encoder.bits * sum(self.encoder.plane_weights)
        top = 2**self.encoder.scale_bits - 1
        scale = self.scales[slots, head].long() % (top + 1)
        shift = next(n for n in range(64) if 2 * full * top >> n < 2047)
        return ((2 * agreement - full) * scale + full * top) >> shift

    def planes(self) -> torch.Tensor:
        return unpack(self.encoder.encode_queries(self.q).unflatten(1, (HKV, -1)))

    def kept(self, row: int, head: int) -> list[int]:
        """Positions that a row keeps: forced ones, then the best, earlier ones first."""
        length = LENGTHS[row]
        budget = self.plan.budget.tokens(length)
        if length <= budget:
            return list(range(length))
        if self.plan.method == "streaming":
            return [*range(SINK), *range(length - budget + SINK, length)]
        scores = self.scores(row, head).tolist()
        forced = {*range(SINK), *range(length - RECENT, length)}
        order = sorted(range(length), key=lambda t: (t not in forced, -scores[t], t))
        return sorted(order[:budget])

    def expected(self, every_token: bool = False) -> torch.Tensor:
        out = torch.zeros_like(self.q)
        for row, head in product(range(len(LENGTHS)), range(HKV)):
            kept = list(range(LENGTHS[row])) if every_token else self.kept(row, head)
            slots = self.slots[row][kept].to(self.q.device)
            for member in range(head * GROUP, (head + 1) * GROUP):
                logits = self.k[slots, head].float() @ self.q[row, member].float() * SCALE
                out[row, member] = logits.softmax(0) @ self.v[slots, head].float()
        return out


def unpack(words: torch.Tensor) -> torch.Tensor:
    shifts = torch.arange(32, device=words.device)
    return ((words.unsqueeze(-1) >> shifts) & 1).flatten(-2)


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


def make_gpu_decoder(steps, device="cuda", dense=()):
    """Decoder of one layer per step, and of dense layers."""
    encoders = {step.plan.layer: step.encoder for step in steps if step.encoder}
    plans = [step.plan for step in steps]
    return GpuDecoder(
        plans,
        dict.fromkeys([*(plan.layer for plan in plans), *dense], SCALE),
        encoders,
        ModelShape(HQ, HKV, DIM, num_layers=8, context_len=256),
        device=torch.device(device),
        dense=dense,
    )


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
        assert decoder.decodes_dense(1)
        assert not decoder.decodes_dense(2)
        out = decoder.decode_dense(1, step.q, LayerCache(*caches))
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
    out = decoder.decode_dense(1, step.q, step.cache)
    expected = step.expected(every_token=True)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", METHODS)
def test_gpu_attends_over_what_the_method_chooses(name, budget, graph):
    step = Step(name, budget, "cuda", torch.bfloat16)
    decoder = make_gpu_decoder([step])
    if graph:
        decoder.allocate_static(len(LENGTHS))
        real, lengths = step.batch, torch.ones(len(LENGTHS), dtype=torch.int64)
        step.batch = Batch(real.req_to_token, real.rows * 0, lengths.cuda(), lengths)
        step.decode(decoder, graph=True, real_rows=0)  # compiles before the capture
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            out = decoder.decode(step.plan, step.q, step.cache)
        step.batch = real
        decoder.prepare(real, graph=True)
        captured.replay()
    else:
        out = step.decode(decoder, graph=False)
    torch.testing.assert_close(out, step.expected(), atol=2e-2, rtol=2e-2)
