"""The methods: what each trains on made-up captures, and training each from text to weights."""

import math

import pytest
import torch
from rich.console import Console
from torch.nn.functional import silu

from hata_sglang.errors import HataError, Refusal
from hata_sglang.methods import method_names, methods, trainable
from hata_sglang.methods.asymmetric import AsymmetricRecipe, AsymmetricTrainer
from hata_sglang.methods.hashattention import HashAttentionRecipe, HashAttentionTrainer
from hata_sglang.methods.hata import HataRecipe, HataTrainer
from hata_sglang.methods.learning.layer_data import SequenceData, scale_step
from hata_sglang.training.attention_mass import TopK
from hata_sglang.training.capture import Capture, Sampling
from hata_sglang.training.measured_layer import MeasuredLayers
from hata_sglang.training.train import TrainOptions, train
from hata_sglang.weights import load_weights

CPU = torch.device("cpu")
SMALL = {"queries_per_step": 64, "keys_per_step": 256, "sink": 4, "recent": 4}


def capture(seed, tokens=120, queries=20):
    """Keys on two KV heads, two query heads each, D = 16.

    Queries look at four directions, the same in every sequence; keys are large in the other
    twelve, where random hyperplanes look too.
    """
    generator = torch.Generator().manual_seed(seed)
    fixed = torch.Generator().manual_seed(99)
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=fixed)).Q
    looks = torch.cat([torch.full((4,), 6.0), torch.full((12,), 0.1)])
    lies = torch.cat([torch.full((4,), 1.0), torch.full((12,), 3.0)])
    return Capture(
        torch.randn(queries, 4, 16, generator=generator) * looks @ rotation,
        torch.randn(tokens, 2, 16, generator=generator) * lies @ rotation,
        torch.arange(tokens - queries, tokens),
        0.25,
    )


def data(*seeds, **kwargs):
    return [SequenceData.of(capture(seed, **kwargs), CPU) for seed in seeds]


# How much held-out mass training adds, at least; asymmetric codes start from a good guess.
# Rotated codes are not trained (test_rotate.py).
GAINS = {"hata": 0.1, "hashattention": 0.1, "asymmetric": 0.02}


@pytest.mark.parametrize("method", [m for m in method_names(trainable=True) if m != "rotate"])
def test_every_method_learns_and_repeats_itself(method):
    recipe = methods()[method].recipe(steps=90, learning_rate=0.01, **SMALL)
    bits = methods()[method].resolve_bits(None, 2) if method == "hashattention" else 64
    options = TrainOptions(measured_queries=20)
    held_out = MeasuredLayers([capture(seed) for seed in range(70, 76)], 1, options, CPU)
    budget = TopK(24, 4, 4)

    def trained():
        trainer = trainable(method).trainer(data(*range(30), queries=60), bits, recipe, seed=5)
        before = trainer.encoder()
        for _ in range(90):
            trainer.step()
        return before, trainer.encoder()

    (before, after), (_, again) = trained(), trained()
    assert type(after) is methods()[method].encoder
    assert after.bits == 64
    gained = held_out.mass(after, budget)[0] - held_out.mass(before, budget)[0]
    assert gained > GAINS[method]
    for name, tensor in after.tensors().items():
        assert torch.equal(tensor, again.tensors()[name]), name
    # a copy: later steps leave it alone
    assert not torch.equal(
        next(iter(before.tensors().values())), next(iter(after.tensors().values()))
    )


def test_asymmetric_codes_learn_what_distance_says():
    """Keys and queries turn with their position, so that attention falls with the distance."""

    def turning(seed):
        generator = torch.Generator().manual_seed(seed)
        positions = torch.arange(60, 120)
        noise = 0.3 * torch.randn(120, 2, 16, generator=generator)
        angles = torch.arange(120) * torch.pi / 120
        plane = torch.stack([angles.cos(), angles.sin()], dim=-1)[:, None]
        q = torch.cat([8 * plane[positions].expand(-1, 4, -1), torch.zeros(60, 4, 14)], dim=-1)
        k = torch.cat([2 * plane.expand(-1, 2, -1), torch.zeros(120, 2, 14)], dim=-1)
        return SequenceData.of(Capture(q, k + noise, positions, 0.25), CPU)

    recipe = AsymmetricRecipe(steps=60, **SMALL)
    trainer = AsymmetricTrainer([turning(seed) for seed in range(4)], 32, recipe, seed=0)
    assert trainer.encoder().tensors()["distance_bias"].eq(0).all()
    for _ in range(60):
        trainer.step()
    bias = trainer.encoder().tensors()["distance_bias"]
    # Between sink and recent, distances are 4 to 115: half octaves 4 to 13.
    assert bias.amax(1).eq(0).all()
    assert bool((bias[:, :4] == bias[:, 4:5]).all() and (bias[:, 14:] == bias[:, 13:14]).all())
    assert bool((bias[:, 4:13] > bias[:, 5:14]).float().mean() > 0.8)
    # In the units of u . s, which the temperature brings to logits.
    logits = trainer.parameters["distance_bias"][:, 0, [6, 12]]
    served = bias[:, [6, 12]] * trainer.log_temperature[:, 0].exp()
    torch.testing.assert_close(served.diff(), logits.diff())


def relaxed_codes(tensors, side, head, x):
    """The 32 numbers of one head's MLP, layer by layer as the paper writes it."""
    for n in range(3):
        x = (silu(x) if n else x) @ tensors[f"{side}.{n}.weight"][head]
        x = x + tensors[f"{side}.{n}.bias"][head]
    return torch.tanh(x)


def test_hashattention_loss_equals_its_definition():
    recipe = HashAttentionRecipe(
        top_keys=5, class_weight=3.0, class_weight_per_key=0.01, sink=4, recent=6, hidden=24
    )
    captured = capture(1, tokens=60, queries=10)
    trainer = HashAttentionTrainer([SequenceData.of(captured, CPU)], 64, recipe, seed=0)
    tensors = trainer.encoder().tensors()
    assert tensors["key.1.weight"].shape == (4, 24, 24)
    losses = []
    for head in range(4):
        keys = captured.k[:, head // 2]
        codes = relaxed_codes(tensors, "key", head, keys)
        for row, position in enumerate(captured.positions.tolist()):
            query = captured.q[row, head]
            eligible = torch.arange(4, position - 6 + 1)
            best = eligible[(keys[eligible] @ query).topk(5).indices].tolist()
            score = codes @ relaxed_codes(tensors, "query", head, query)
            for key in eligible.tolist():
                share = 1 / (1 + math.exp(-float(score[key])))
                losses.append(
                    -(3.0 + 0.01 * 60) * math.log(share) if key in best else -math.log(1 - share)
                )
    assert float(trainer.step()) == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_hashattention_serves_the_signs_of_its_relaxed_codes():
    trainer = HashAttentionTrainer(data(1), 64, HashAttentionRecipe(**SMALL), seed=0)
    encoder, captured = trainer.encoder(), capture(1)
    words = encoder.key_bits(captured.k).unflatten(2, (2, 32))
    for head in range(4):
        expected = relaxed_codes(encoder.tensors(), "key", head, captured.k[:, head // 2]) > 0
        assert torch.equal(words[:, head // 2, head % 2], expected)


def test_hashattention_needs_keys_between_sink_and_recent():
    with pytest.raises(HataError, match=r"first 128 and the last 128 tokens, found none"):
        HashAttentionTrainer(data(1), 64, HashAttentionRecipe(), seed=0)


@pytest.mark.parametrize("layers", [1, 2])
def test_hashattention_mlps_of_fewer_layers(layers):
    trainer = HashAttentionTrainer(data(1), 64, HashAttentionRecipe(layers=layers, **SMALL), seed=0)
    assert torch.isfinite(trainer.step())
    assert set(trainer.encoder().tensors()) == {
        f"{side}.{n}.{kind}"
        for side in ("key", "query")
        for n in range(layers)
        for kind in ("weight", "bias")
    }


def test_bits_of_hashattention_follow_the_group():
    assert methods()["hashattention"].resolve_bits(None, 3) == 96
    assert methods()["hashattention"].resolve_bits(96, 3) == 96
    with pytest.raises(Refusal, match=r"bits: expected 96, 32 for each of the 3 .*, found 128"):
        methods()["hashattention"].resolve_bits(128, 3)
    assert methods()["hata"].resolve_bits(None, 3) == 128


def test_the_step_of_a_scale_fits_all_but_the_largest_thousandth():
    magnitudes = torch.stack([torch.arange(1.0, 2001.0), torch.full((2000,), 510.0)])
    assert scale_step(magnitudes, 8).tolist() == pytest.approx([1998 / 255, 2.0])
    assert scale_step(torch.zeros(1, 10), 16).item() > 0


def test_key_norms_weigh_scores_in_training_and_serving():
    recipes = [HataRecipe(steps=5, scale_bits=bits, **SMALL) for bits in (0, 8, 16)]
    trainers = [HataTrainer(data(1), 64, recipe, seed=0) for recipe in recipes]
    losses = [float(trainer.step()) for trainer in trainers]
    assert losses[0] != losses[1] == losses[2]
    encoder, keys = trainers[1].encoder(), capture(1).k
    steps = encoder.key_scales(keys) * encoder.tensors()["scale_step"]
    # Half a step beside the norm itself; 120 keys have no largest thousandth.
    assert (steps - keys.norm(dim=-1)).abs().max() <= encoder.tensors()["scale_step"].max() / 1.9


def test_loss_weights_of_the_code_are_the_papers_swapped():
    paper, code = (HataRecipe(objective="paper", loss_weights=kind) for kind in ("paper", "code"))
    assert (paper.constants.balance, paper.constants.decorrelation) == (2.0, 1.0)
    assert (code.constants.balance, code.constants.decorrelation) == (1.0, 2.0)
    assert code.card_entry()["paper_balance"] == 1.0
    first = [float(HataTrainer(data(1), 64, recipe, seed=0).step()) for recipe in (paper, code)]
    assert first[0] != first[1]


@pytest.mark.parametrize(
    ("objective", "schedule", "falls"),
    [
        ("attention", None, True),
        ("attention", "constant", False),
        ("paper", None, False),
        ("paper", "cosine", True),
    ],
)
def test_schedules(objective, schedule, falls):
    recipe = HataRecipe(objective=objective, schedule=schedule, steps=4, **SMALL)
    trainer = HataTrainer(data(1), 64, recipe, seed=0)
    for _ in range(4):
        trainer.step()
    rate = trainer.optimizer.param_groups[0]["lr"]
    assert rate == pytest.approx(0.0 if falls else recipe.rate, abs=1e-9)
    assert recipe.card_entry()["schedule"] == ("cosine to 0" if falls else "constant")


@pytest.mark.parametrize("method", method_names(trainable=True))
def test_every_method_trains_from_text_to_weights(method, model_dir, text_file, tmp_path):
    options = TrainOptions(
        sequence_length=200,
        minimum_length=100,
        sampling=Sampling(queries=16, tail_queries=8, tail=20),
        budgets=(TopK(24, 2, 2),),
        evaluate_every=5,
        dtype="float16",
    )
    small = {} if method == "rotate" else SMALL | {"steps": 10, "keys_per_step": 64}
    recipe = methods()[method].recipe(**small)
    console = Console(quiet=True)
    card = train(
        model_dir,
        [text_file],
        [],
        tmp_path / "w",
        method=method,
        recipe=recipe,
        options=options,
        console=console,
    )
    weights = load_weights(tmp_path / "w")
    encoder = weights.encoder(1)
    assert card.method == method
    assert type(encoder) is methods()[method].encoder
    assert encoder.bits == card.bits == (64 if method == "hashattention" else 128)
    assert encoder.options() == card.options
    assert set(card.held_out[0].mean) == {"exact", method, "random", "streaming"}
    assert card.recipe["steps_taken"] <= 20
