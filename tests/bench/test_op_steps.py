"""What is timed is right: the steps of `bench op` on the CPU, with the kernels' references."""

import pytest
import torch

from hata_kernels.attend.naive import attend_naive
from hata_kernels.score import exact_score
from hata_sglang.bench import layer as layers
from hata_sglang.bench import op, op_meter
from hata_sglang.bench.exact import exact_slots
from hata_sglang.bench.shapes import Scenario, Shape
from hata_sglang.bench.timing import Timing

SHAPE = Shape("small", 6, 3, 32)
CONTEXT = 256


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    def attend(q, k_cache, v_cache, slots, seq_lens, budgets, *, scale, out):
        counts = torch.minimum(seq_lens, budgets)
        out.copy_(attend_naive(q, k_cache, v_cache, slots, counts, scale=scale))
        return out

    torch.manual_seed(0)
    monkeypatch.setattr(layers, "DEVICE", "cpu")
    monkeypatch.setattr(layers, "DTYPE", torch.float32)


def scenario(k, method="asymmetric"):
    return Scenario(SHAPE, 2, CONTEXT, k, method, 64)


def dense(layer):
    slots = layer.token_slots[:, None, :].expand(-1, SHAPE.kv_heads, -1).contiguous()
    counts = torch.full((2,), CONTEXT)
    scale = SHAPE.dim**-0.5
    return attend_naive(layer.q, layer.k_cache, layer.v_cache, slots, counts, scale=scale)


@pytest.mark.parametrize("method", ["hata", "asymmetric"])
def test_a_layer_that_keeps_everything_is_dense(method):
    sparse = op.SparseLayer(scenario(CONTEXT, method))
    assert len(sparse.layers) > 1
    for number, layer in enumerate(sparse.layers[:2]):
        sparse.whole(number)
        # Slots in position order: the same rows in the same order.
        torch.testing.assert_close(sparse.out, dense(layer))


def test_stages_make_the_layer():
    sparse = op.SparseLayer(scenario(100))
    sparse.whole(1)
    whole = sparse.out.clone()
    # The step's keys took slots of the context: what was ranked before may be out of date.
    sparse.slots[1] = sparse.rank(1)
    sparse.attend(1)
    assert torch.equal(sparse.out, whole)


def test_users_of_one_document():
    users = Scenario(SHAPE, 5, 2100, 100, "hata", 64, shared=2048)
    sparse = op.SparseLayer(users)
    assert sparse.groups.shared.tolist() == [2048] * 5
    for layer in sparse.layers[:2]:
        assert (layer.token_slots[:, :2048] == layer.token_slots[0, :2048]).all()
        assert layer.token_slots.unique().numel() == users.tokens == 2048 + 5 * 52
        assert layer.k_cache.shape[0] == users.tokens + 1
    assert torch.equal(sparse.rank(1), sparse.rank_apart(1))
    op.dense_layer_step(sparse)(1)
    layer = sparse.layers[1]
    slots = layer.token_slots[:, None, :].expand(-1, SHAPE.kv_heads, -1).contiguous()
    counts = torch.full((5,), 2100)
    caches = (layer.k_cache, layer.v_cache)
    expected = attend_naive(layer.q, *caches, slots, counts, scale=SHAPE.dim**-0.5)
    torch.testing.assert_close(sparse.out, expected)


def test_stages_of_a_shared_document(monkeypatch):
    def timed(step, count):
        step(0)
        return Timing(1, 1, 1)

    monkeypatch.setattr(op, "time_layers", timed)
    monkeypatch.setattr(op, "kernel_times", lambda step, count, names: {})
    found = op.time_stages(op.SparseLayer(Scenario(SHAPE, 4, 1100, 100, "hata", 64, shared=1024)))
    more = {"group rows", "rank, rows apart"}
    assert set(found) == {"encode", "rank", "attend", "layer", "dense layer"} | more


def test_rows_are_grouped_as_in_a_step():
    """An engine's step cannot know whether its rows share anything: nothing is left out."""
    apart = op.SparseLayer(Scenario(SHAPE, 4, 1100, 100, "hata", 64))
    assert apart.groups.shared.tolist() == [0] * 4
    assert torch.equal(apart.rank(1), apart.rank_apart(1))
    assert op.SparseLayer(Scenario(SHAPE, 3, 1100, 100, "hata", 64)).groups is None


def test_budgets_share_layers():
    first = op.SparseLayer(scenario(100))
    second = op.SparseLayer(scenario(128), first)
    assert second.layers is first.layers
    assert second.slots[0].shape == (2, SHAPE.kv_heads, 128)
    addresses = {encoder.tensors()["key_weight"].data_ptr() for encoder in second.encoders}
    assert len(addresses) == len(second.layers)


def test_attention_over_cold_selections():
    sparse = op.SparseLayer(scenario(100))
    step, count = sparse.attend_cold()
    assert count == op.MAX_TURNS * len(sparse.layers)
    sparse.attend(1)
    own = sparse.out.clone()
    step(1)
    assert torch.equal(sparse.out, own)
    step(count - 1)
    assert not torch.equal(sparse.out, own)
    slots = sparse._random_slots(sparse.layers[0])
    assert slots.dtype == torch.int32
    for row in range(2):
        assert torch.isin(slots[row], sparse.layers[0].token_slots[row]).all()


@pytest.mark.parametrize("k", [100, CONTEXT])
def test_exact_peer_picks_what_the_reference_scores_highest(k):
    layer = op.SparseLayer(scenario(100)).layers[0]
    where = {"sink": layers.SINK, "recent": layers.RECENT}
    slots = exact_slots(layer.q, layer.k_cache, layer.token_slots, k, **where)
    assert slots.dtype == torch.int32
    scores = torch.empty(2, SHAPE.kv_heads, CONTEXT)
    lengths = torch.full((2,), CONTEXT)
    exact_score(
        layer.q,
        layer.k_cache,
        layer.token_slots,
        lengths,
        scale=SHAPE.dim**-0.5,
        out=scores,
        **where,
    )
    best = scores.topk(k).indices.sort().values
    expected = layer.token_slots[:, None, :].expand(-1, SHAPE.kv_heads, -1).gather(2, best)
    assert torch.equal(slots, expected)


def test_meter_runs_every_step(monkeypatch):
    def once(step, count, *_):
        for number in range(count):
            step(number)
        return Timing(1.0, 2.0, 3.0)

    monkeypatch.setattr(op, "time_layers", once)
    monkeypatch.setattr(op_meter, "time_layers", once)
    monkeypatch.setattr(op, "kernel_times", lambda step, count, names: {names[0]: once(step, 1)})
    meter = op_meter.GpuMeter()
    meter.open(scenario(100))
    stages = {"encode", "rank", "attend", "layer", "dense layer", "rank/floor_kernel"}
    assert set(meter.stages()) == stages
    assert meter.exact() == Timing(1.0, 2.0, 3.0)
    kept = meter.layer.layers
    meter.open(scenario(128))
    assert meter.layer.layers is kept
    meter.open(scenario(128, "hata"))
    assert meter.layer.layers is not kept
