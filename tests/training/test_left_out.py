"""What the mean of the values left out weighs, and what it is worth, against loops and by hand."""

import pytest
import torch

from hata_kernels.attend import RATIOS, left_out_weight
from hata_sglang.methods import methods
from hata_sglang.training.attention_mass import TopK, select
from hata_sglang.training.capture import Capture, join
from hata_sglang.training.left_out import LeastSquares, Outputs, outputs
from hata_sglang.training.measured_layer import MeasuredLayers
from hata_sglang.training.options import TrainOptions

CPU = torch.device("cpu")
KV_HEADS, GROUP, DIM, LENGTH = 2, 3, 16, 90


def capture(seed=0, offset=0.0):
    """Random; all values are `offset` away from 0, as those of a model have a mean."""
    dice = torch.Generator().manual_seed(seed)
    q = torch.randn(7, KV_HEADS * GROUP, DIM, generator=dice)
    k, v = torch.randn(2, LENGTH, KV_HEADS, DIM, generator=dice).unbind()
    return Capture(q, k, torch.linspace(LENGTH // 2, LENGTH - 1, 7).long(), 0.5, v + offset)


def any_order(captured, seed=0):
    dice = torch.Generator().manual_seed(seed)
    scores = torch.rand(KV_HEADS, len(captured.q), LENGTH, generator=dice)
    return select(scores, captured.positions, TopK(LENGTH, 2, 2))


def test_weights_are_interpolated_in_the_logarithm_of_the_ratio():
    weights = torch.stack([torch.arange(RATIOS) / 10, torch.arange(RATIOS) / 100])
    seq_lens = torch.tensor([50, 50, 100, 1000, 96, 3, 10**6])
    counts = torch.tensor([50, 60, 50, 125, 32, 3, 1])
    expected = torch.tensor([0, 0, 1, 3, torch.log2(torch.tensor(3.0)), 0, 7])
    found = left_out_weight(weights, seq_lens, counts)
    torch.testing.assert_close(found, torch.stack([expected / 10, expected / 100], dim=1))


def test_outputs_are_those_of_a_loop():
    captured = capture()
    order, counts = any_order(captured), [torch.full((7,), 12), captured.positions + 1]
    some, all_of_them = outputs(captured, order, counts)
    for row, position in enumerate(captured.positions.tolist()):
        for head in range(KV_HEADS):
            keys, values = captured.k[: position + 1, head], captured.v[: position + 1, head]
            kept = sorted(order[head, row, :12].tolist())
            rest = [token for token in range(position + 1) if token not in kept]
            torch.testing.assert_close(some.left_out[head, 0, row], values[rest].mean(0))
            for member in range(GROUP):
                logits = keys @ captured.q[row, head * GROUP + member] * captured.scale
                place = (head, member, row)
                torch.testing.assert_close(some.whole[place], logits.softmax(0) @ values)
                selected = logits[kept].softmax(0) @ values[kept]
                torch.testing.assert_close(some.selected[place], selected)
    torch.testing.assert_close(all_of_them.selected, all_of_them.whole)
    assert not all_of_them.left_out.any()


def test_least_squares_finds_what_was_mixed_in():
    dice = torch.Generator().manual_seed(1)
    mixed = torch.rand(KV_HEADS, GROUP, RATIOS - 1, generator=dice) * 1.6 - 0.3  # some outside 0..1
    fit, seq_lens = LeastSquares(), torch.full((7,), 1000)
    for _ in range(2):
        found = []
        for ratio, counts in enumerate(LeastSquares.counts(seq_lens)):
            selected = torch.randn(KV_HEADS, GROUP, 7, DIM, generator=dice)
            mean = torch.randn(KV_HEADS, 1, 7, DIM, generator=dice)
            whole = torch.lerp(selected, mean.expand_as(selected), mixed[..., ratio, None, None])
            found.append(Outputs(whole, selected, mean, seq_lens, counts))
        fit.add(found)
    weights = fit.weights()
    assert not weights[:, 0].any()
    torch.testing.assert_close(weights[:, 1:], mixed.clamp(0, 1).flatten(0, 1))
    # Counts are whole numbers, so that the last ratio is 1000 / 7 and not 128.
    inside = (mixed >= 0).all(-1) & (mixed <= 1).all(-1)
    assert inside.any()
    assert (found[0].error(weights)[inside.all(-1)] < 1e-5).all()
    assert found[0].error(weights).max() < found[0].error().max()


def test_counts_halve_and_sink_and_recent_leave_room():
    counts = LeastSquares.counts(torch.tensor([4096, 100]))
    assert [count.tolist() for count in counts[:2]] == [[2048, 50], [1024, 25]]
    assert counts[-1].tolist() == [32, 1]
    assert LeastSquares.ends(torch.tensor([8192, 16384])) == 16
    assert LeastSquares.ends(torch.tensor([100])) == 1


@pytest.mark.parametrize("together", [1, 2])
def test_the_mean_brings_outputs_nearer(together):
    """Values with a mean, ranked by random planes: what is left out is mostly this mean."""
    sizes = {"num_kv_heads": KV_HEADS * together, "group": GROUP, "head_dim": DIM}
    encoder = methods()["random"].untrained_encoder(64, seed=0, layer=0, **sizes)
    layers = [[capture(10 * layer + n, offset=3.0) for n in range(3)] for layer in range(together)]
    joined = [join(parts) for parts in zip(*layers, strict=True)]
    measured = MeasuredLayers(joined, together, TrainOptions(), CPU)
    budget = TopK(8, 1, 1)
    weights = measured.left_out_weights(encoder, budget)
    assert weights.shape == (together, KV_HEADS * GROUP, RATIOS)
    assert (weights[..., 1:] > 0).all()
    errors = measured.output_errors(encoder, budget, weights)
    for codes, mean in zip(errors["codes"], errors["with mean"], strict=True):
        assert mean < 0.9 * codes
    none = measured.output_errors(encoder, budget, torch.zeros_like(weights))
    assert none["with mean"] == pytest.approx(none["codes"])
