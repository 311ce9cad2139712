"""Rotated codes: scores are estimates of q.k, from the keys' mean and size alone."""

import argparse
import json
import math
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from rich.progress import Progress
from safetensors import safe_open
from transformers import AutoConfig

from hata_kernels.encoders import dense_scores
from hata_sglang.config import HataConfig
from hata_sglang.errors import HataError, Refusal
from hata_sglang.methods.learning.layer_data import SequenceData
from hata_sglang.methods.rotate import RotateRecipe, RotateTrainer, random_rotation
from hata_sglang.shape import AttentionShape
from hata_sglang.training import train_layer as train_layer_module
from hata_sglang.training.attention_mass import TopK
from hata_sglang.training.capture import Capture, Sampling
from hata_sglang.training.cli import add_train_arguments, run_train
from hata_sglang.training.recipe_options import make_recipe
from hata_sglang.training.train import TrainOptions, train
from hata_sglang.weights.auto import ServedModel
from hata_sglang.weights.encoders import load_encoders

KV_HEADS, GROUP, DIM = 2, 3, 64


def capture(seed, tokens=1500, queries=12, offset=0.0, spread=0.0):
    """Gaussian keys around a point that is `offset` away, their sizes e**(spread * normal)."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    away = torch.nn.functional.normalize(draw(1, KV_HEADS, DIM), dim=-1) * offset
    sizes = (spread * draw(tokens, KV_HEADS, 1)).exp()
    return Capture(
        draw(queries, KV_HEADS * GROUP, DIM),
        draw(tokens, KV_HEADS, DIM) * sizes + away,
        torch.arange(tokens - queries, tokens),
        DIM**-0.5,
    )


def encoder_of(*captures, bits=64, seed=0, **options):
    data = [SequenceData.of(captured, torch.device("cpu")) for captured in captures]
    return RotateTrainer(data, bits, RotateRecipe(**options), seed).encoder()


def rank_correlation(one, other):
    """Spearman's, of the last dimension, the mean over all others."""
    ranks = torch.stack([x.argsort(-1).argsort(-1).double() for x in (one, other)])
    centred = torch.nn.functional.normalize(ranks - ranks.mean(-1, keepdim=True), dim=-1)
    return float(centred.prod(0).sum(-1).mean())


def products(captured):
    """q.k, summed over the group: ``[Hkv, N, S]``."""
    whole = captured.q.unflatten(1, (KV_HEADS, GROUP)).sum(2)
    return torch.einsum("nhd,shd->hns", whole, captured.k)


def agreement(encoder, captured):
    """Rank correlation of scores with q.k, summed over the group."""
    return rank_correlation(
        dense_scores(encoder, captured.q, captured.k, captured.positions), products(captured)
    )


def recall(encoder, captured, count=75):
    """Share of the `count` best keys that are among the `count` best by score."""
    best = products(captured).topk(count).indices
    found = dense_scores(encoder, captured.q, captured.k, captured.positions).topk(count).indices
    return float((best[..., :, None] == found[..., None, :]).any(-1).float().mean())


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize(
    ("bits", "stages", "least"),
    # Of a Gaussian, a sign keeps sqrt(2 / pi) = 0.80 of the correlation, and two bits sqrt(1 -
    # 0.1175) = 0.94 (Max 1960); half of the directions keep sqrt(1 / 2) of it; ranks a little less.
    [(32, 1, 0.5), (64, 1, 0.75), (128, 1, 0.83), (64, 2, 0.6), (128, 2, 0.9), (256, 2, 0.94)],
)
def test_scores_rank_as_the_products_do(bits, stages, least, offset):
    captured = capture(1, offset=offset)
    encoder = encoder_of(captured, bits=bits, stages=stages, query_bits=6, clip=3.0, scale_bits=0)
    assert (encoder.bits, encoder.stages) == (bits, stages)
    assert least < agreement(encoder, captured) < least + 0.08


def test_four_planes_are_nearly_as_good_as_six():
    captured = capture(1)
    four, six = (agreement(encoder_of(captured, query_bits=b), captured) for b in (4, 6))
    assert six - 0.02 < four <= six + 0.005


@pytest.mark.parametrize("bits", [64, 128])
def test_what_all_keys_share_changes_nothing(bits):
    """Without the mean, an offset would decide most signs."""
    near, far = capture(2, offset=0.0), capture(2, offset=100.0)
    codes = [encoder_of(c, bits=bits).key_bits(c.k) for c in (near, far)]
    assert (codes[0] == codes[1]).float().mean() > 0.999
    uncentred = encoder_of(near, bits=bits).key_bits(far.k)
    assert (uncentred == codes[0]).float().mean() < 0.8


def test_scales_say_how_large_a_key_is():
    captured = capture(3, spread=0.6)
    scaled = encoder_of(captured, scale_bits=8)
    plain = encoder_of(captured, scale_bits=0)
    assert recall(scaled, captured) > recall(plain, captured) + 0.1
    scales = scaled.key_scales(captured.k)
    assert (scales == 255).sum(0).tolist() == [2, 2]  # the two largest of 1,500
    sizes = scales * scaled.tensors()["scale_step"]
    # In units of all projections' root mean square: sqrt(2 / pi) of a key's own.
    centred = captured.k - captured.k.mean(0)
    norms = centred.norm(dim=-1) / centred.square().sum(-1).mean(0).sqrt()
    assert (sizes / norms).median().item() == pytest.approx(math.sqrt(2 / math.pi), rel=0.02)
    both = torch.stack([sizes.flatten(), norms.flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.97


def test_scales_of_sixteen_bits():
    captured = capture(3, spread=0.6)
    assert agreement(encoder_of(captured, scale_bits=16), captured) == pytest.approx(
        agreement(encoder_of(captured, scale_bits=8), captured), abs=0.01
    )


def test_the_group_asks_with_the_sum_of_its_queries():
    captured = capture(4)
    encoder = encoder_of(captured, bits=128)
    grouped = captured.q.unflatten(1, (KV_HEADS, GROUP))
    alone = torch.zeros_like(grouped)
    alone[:, :, 1] = grouped.sum(2)
    same = encoder.query_levels(captured.q) == encoder.query_levels(alone.flatten(1, 2))
    assert same.float().mean() > 0.999


@pytest.mark.parametrize("count", [16, 64, 96])
def test_directions_are_orthogonal_or_a_tight_frame(count):
    rotation = random_rotation(KV_HEADS, DIM, count, seed=0)
    assert rotation.shape == (KV_HEADS, DIM, count)
    flat = rotation if count > DIM else rotation.transpose(1, 2)
    product = flat @ flat.transpose(1, 2)
    torch.testing.assert_close(product, torch.eye(min(count, DIM)).expand_as(product))
    assert not torch.allclose(rotation[0], rotation[1], atol=0.1)


def test_same_seed_same_weights():
    captured = capture(5)
    one, again, other = (encoder_of(captured, seed=seed).tensors() for seed in (7, 7, 8))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["key_weight"], other["key_weight"])


def test_sequences_count_as_one():
    """The mean is that of all keys, not of sequences."""
    whole = capture(6)
    parts = [
        Capture(whole.q, whole.k[cut], whole.positions[-1:].repeat(12), whole.scale)
        for cut in (slice(0, 300), slice(300, None))
    ]
    one, other = encoder_of(whole).tensors(), encoder_of(*parts).tensors()
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("bits", "stages", "scale_bits"),
    [(32, 1, 8), (64, 1, 8), (96, 1, 8), (128, 2, 0), (256, 2, 0)],
)
def test_two_stages_and_no_scale_from_two_bits_a_dimension_on(bits, stages, scale_bits):
    encoder = encoder_of(capture(1, tokens=50), bits=bits)
    assert (encoder.stages, encoder.scale_bits) == (stages, scale_bits)
    other = encoder_of(capture(1, tokens=50), bits=bits, stages=3 - stages, scale_bits=16)
    assert (other.stages, other.scale_bits) == (3 - stages, 16)


def test_keys_that_are_all_alike_give_finite_weights():
    captured = capture(1, tokens=50)
    alike = Capture(captured.q, torch.ones_like(captured.k), captured.positions, captured.scale)
    for tensor in encoder_of(alike, bits=128).tensors().values():
        assert torch.isfinite(tensor.half()).all()


def test_steps_and_rates_are_no_options():
    for option in ("steps=5", "learning_rate=0.1"):
        with pytest.raises(
            Refusal, match=r"--option .*: expected a known option.*found an unknown one"
        ):
            make_recipe(RotateRecipe, [option])
    assert make_recipe(RotateRecipe, ["stages=2", "scale_bits=16"]) == RotateRecipe(
        stages=2, scale_bits=16
    )
    with pytest.raises(NotImplementedError):
        RotateTrainer(
            [SequenceData.of(capture(1, tokens=50), torch.device("cpu"))], 32, RotateRecipe(), 0
        ).step()


OPTIONS = TrainOptions(
    bits=64,
    sequence_length=200,
    minimum_length=100,
    sampling=Sampling(queries=16, tail_queries=8, tail=20),
    budgets=(TopK(24, 2, 2),),
)


def test_without_steps_nothing_says_loss(model_dir, text_file, tmp_path):
    """Finished layers and the card are JSON without NaN, and an interrupted run goes on."""

    def run(out):
        return train(
            model_dir,
            [text_file],
            [],
            tmp_path / out,
            method="rotate",
            options=OPTIONS,
            work_dir=tmp_path / "work",
            console=Console(quiet=True),
        )

    card = run("first")
    assert card.recipe["steps"] == card.recipe["steps_taken"] == 0
    mean = card.held_out[0].mean
    assert mean["exact"] > mean["rotate"] > mean["random"]
    kept = sorted((tmp_path / "work" / "layers").rglob("*.safetensors"))
    assert len(kept) == 2
    for path in kept:
        with safe_open(path, framework="pt") as file:
            text = file.metadata()["result"]
        assert "NaN" not in text
        assert json.loads(text)["loss"] is None
    assert "NaN" not in (tmp_path / "first" / "card.json").read_text()
    again = run("again")
    assert again.sha256 == card.sha256
    assert again.created_by["layers_from_earlier_run"] == "2"


def test_from_the_command_line_to_the_encoders_of_a_server(model_dir, text_file, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    out = tmp_path / "mine"
    arguments = f"--model {model_dir} --data {text_file} --out {out} --method rotate --bits 96"
    arguments += " --sequence-length 200 --minimum-length 100 --budget 24:2:2 --dtype float16"
    arguments += " --option query_bits=5"
    assert run_train(parser.parse_args(arguments.split())) == 0
    printed = capsys.readouterr()
    assert "rotate 0." in printed.out
    assert "loss" not in printed.err
    config = tmp_path / "mine.yaml"
    config.write_text("method: rotate\nweights: ./mine\nbudget: 96\ndense_layers: []\n")
    heads = AttentionShape(num_heads=4, num_kv_heads=2, head_dim=16)
    plans = HataConfig.load(config).resolve(2, 512)
    loaded = load_encoders(plans, heads, ServedModel(AutoConfig.from_pretrained(model_dir)))
    for encoder in loaded.encoders.values():
        assert (encoder.bits, encoder.stages, encoder.query_bits) == (96, 2, 5)
        assert encoder.scale_bits == 0


def test_weights_that_do_not_fit_their_file_are_refused(monkeypatch):
    encoder = encoder_of(capture(1, tokens=50))
    encoder.tensors()["query_weight"].fill_(1e6)
    made = SimpleNamespace(trainer=lambda *_: SimpleNamespace(encoder=lambda: encoder))
    monkeypatch.setattr(train_layer_module, "trainable", lambda _: made)
    captures = {name: [capture(1, tokens=50)] for name in ("train", "validation", "held_out")}
    options = TrainOptions(dtype="float16")
    bars = Progress(console=Console(quiet=True))
    with pytest.raises(
        HataError, match=r"layer 3: expected finite weights at the start, .*--dtype"
    ):
        train_layer_module.train_layers(captures, [3], "rotate", 64, RotateRecipe(), options, bars)
