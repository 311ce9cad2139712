"""What is timed is right: the steps of `bench op` on the CPU, with the kernels' references."""

from unittest.mock import create_autospec

import pytest
import torch

from hata_kernels.attend import SparseDecode
from hata_kernels.attend.naive import attend_naive
from hata_kernels.score import exact_score
from hata_sglang.bench import layer as layers
from hata_sglang.bench import op, peers, sparse_layer
from hata_sglang.bench.peers import exact_slots, our_dense
from hata_sglang.bench.scenarios import Scenario
from hata_sglang.bench.shapes import Shape
from hata_sglang.bench.sparse_layer import SparseLayer
from hata_sglang.bench.timing import Timing, time_layers

SHAPE = Shape("small", 6, 3, 32, 1, 192, 64, 100)
CONTEXT = 256


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(layers, "DEVICE", "cpu")
    monkeypatch.setattr(layers, "DTYPE", torch.float32)


def scenario(k, method="asymmetric"):
    return Scenario(SHAPE, 2, CONTEXT, k, method, 64)


def dense(layer):
    batch, context = layer.token_slots.shape
    slots = layer.token_slots[:, None, :].expand(-1, SHAPE.kv_heads, -1).contiguous()
    counts = torch.full((batch,), context)
    scale = SHAPE.dim**-0.5
    return attend_naive(layer.q, layer.k_cache, layer.v_cache, slots, counts, scale=scale)


@pytest.mark.parametrize("method", ["hata", "asymmetric"])
def test_a_layer_that_keeps_everything_is_dense(method):
    sparse = SparseLayer(scenario(CONTEXT, method))
    assert len(sparse.layers) > 1
    for number, layer in enumerate(sparse.layers[:2]):
        sparse.whole(number)
        # Slots in position order: the same rows in the same order.
        torch.testing.assert_close(sparse.out, dense(layer))


def test_stages_make_the_layer():
    sparse = SparseLayer(scenario(100))
    sparse.whole(1)
    whole = sparse.out.clone()
    # The step's keys took slots of the context: what was ranked before may be out of date.
    sparse.attend_over(sparse.layers[1], sparse.rank(1))
    assert torch.equal(sparse.out, whole)


def test_weights_of_its_own_for_every_layer():
    sparse = SparseLayer(scenario(100))
    addresses = {encoder.tensors()["key_weight"].data_ptr() for encoder in sparse.encoders}
    assert len(addresses) == len(sparse.layers)


def test_users_of_one_document():
    users = Scenario(SHAPE, 5, 2100, 100, "hata", 64, shared=2048)
    sparse = SparseLayer(users)
    assert sparse.groups.shared.tolist() == [2048] * 5
    for layer in sparse.layers[:2]:
        assert (layer.token_slots[:, :2048] == layer.token_slots[0, :2048]).all()
        assert layer.token_slots.unique().numel() == users.tokens == 2048 + 5 * 52
        assert layer.k_cache.shape[0] == users.tokens + 1
    assert torch.equal(sparse.rank(1), sparse.rank_apart(1))
    our_dense(sparse)(1)
    torch.testing.assert_close(sparse.out, dense(sparse.layers[1]))


def test_rows_are_grouped_as_in_a_step():
    """An engine's step cannot know whether its rows share anything: nothing is left out."""
    apart = SparseLayer(Scenario(SHAPE, 4, 1100, 100, "hata", 64))
    assert apart.groups.shared.tolist() == [0] * 4
    assert torch.equal(apart.rank(1), apart.rank_apart(1))
    assert SparseLayer(Scenario(SHAPE, 3, 1100, 100, "hata", 64)).groups is None


def test_attention_over_cold_selections():
    sparse = SparseLayer(scenario(100))
    pairs = sparse.cold_selections()
    assert len(pairs) == sparse_layer.MAX_TURNS * len(sparse.layers)
    assert all(slots is own for (_, slots), own in zip(pairs, sparse.slots, strict=False))
    layer, slots = pairs[-1]
    assert slots.dtype == torch.int32
    assert not torch.equal(slots, sparse.slots[-1])
    for row in range(2):
        assert torch.isin(slots[row], layer.token_slots[row]).all()


@pytest.mark.parametrize("k", [100, CONTEXT])
def test_exact_peer_picks_what_the_reference_scores_highest(k):
    layer = SparseLayer(scenario(100)).layers[0]
    slots = exact_slots(layer, k)
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
        sink=layers.SINK,
        recent=layers.RECENT,
    )
    best = scores.topk(k).indices.sort().values
    expected = layer.token_slots[:, None, :].expand(-1, SHAPE.kv_heads, -1).gather(2, best)
    assert torch.equal(slots, expected)


def test_exact_is_left_out_above_two_gigabytes(monkeypatch):
    sparse = SparseLayer(scenario(100))
    # Gathered keys (2 x 32 bytes) and places of 3 heads, logits and scores of 6, of 512 tokens.
    size = 512 * (3 * (64 + 4) + 6 * 6)
    monkeypatch.setattr(op, "MAX_EXACT_BYTES", size - 1)
    timing, note = op.time_exact(sparse)
    assert timing is None
    assert note.startswith("skipped: 0.0 GB of gathered keys")
    monkeypatch.setattr(op, "MAX_EXACT_BYTES", size)
    monkeypatch.setattr(op, "time_layers", lambda step, count: step(count - 1))
    assert op.time_exact(sparse) == (None, "")


@pytest.mark.parametrize("shared", [0, 1024])
def test_stages(shared, monkeypatch):
    """Every step runs, of every layer; FlashInfer's calls fit the signatures of `SparseDecode`."""
    timed = Timing(1.0, 2.0, 3.0)

    def once(step, count, *_):
        for number in range(count):
            step(number)
        return timed

    decode = create_autospec(SparseDecode)
    monkeypatch.setattr(peers, "SparseDecode", decode)
    monkeypatch.setattr(op, "fits_dense", lambda *_: True)
    monkeypatch.setattr(op, "time_layers", once)
    monkeypatch.setattr(op, "kernel_times", lambda step, count, names: {names[0]: once(step, 1)})
    sparse = SparseLayer(Scenario(SHAPE, 4, 1100, 100, "hata", 64, shared=shared))
    found = op.time_stages(sparse)
    stages = {"encode", "rank", "attend", "attend, flashinfer", "layer", "rank/floor_kernel"}
    assert set(found) == stages | (
        {"group rows", "rank, rows apart", "dense layer"} if shared else set()
    )
    (counts,) = decode.return_value.plan.call_args.args
    assert counts.tolist() == [100] * 4
    assert decode.return_value.run.call_count == len(sparse.cold_selections())


def test_a_group_that_flashinfer_does_not_know(monkeypatch):
    def refused(*_):
        raise RuntimeError("Error in function\n'operator()'")

    monkeypatch.setattr(op, "flashinfer_dense", refused)
    found = op.time_dense(SparseLayer(scenario(100)), False)
    assert found == (None, "failed: Error in function 'operator()'")


def test_a_graph_calls_every_layer_as_often(monkeypatch):
    import flashinfer.testing

    def graph(fn, **options):
        for _ in range(3 + options["num_iters_within_graph"]):  # it warms up with three calls
            fn()
        return [0.001 * each for each in range(1, 12)]

    name = "bench_gpu_time_with_cudagraph"
    real = getattr(flashinfer.testing, name)
    monkeypatch.setattr(flashinfer.testing, name, create_autospec(real, side_effect=graph))
    called = []
    found = time_layers(called.append, 5)
    assert (found.p20, found.p50, found.p80) == pytest.approx((3, 6, 9))
    assert [called[3:].count(layer) for layer in range(5)] == [3] * 5
    assert called[3:8] == [3, 4, 0, 1, 2]
