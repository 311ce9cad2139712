"""Three splits of the texts: none is in two of them, and validation alone chooses the weights."""

import json
from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from rich.progress import Progress

from hata_kernels.encoders import LinearEncoder
from hata_sglang.methods.hata import HataRecipe
from hata_sglang.training import train_layer as train_layer_module
from hata_sglang.training.attention_mass import TopK
from hata_sglang.training.capture import Capture, join
from hata_sglang.training.data import DataError
from hata_sglang.training.measured_layer import MeasuredLayers
from hata_sglang.training.options import TrainOptions
from hata_sglang.training.splits import SPLITS, SplitFiles, describe_splits, read_splits
from hata_sglang.training.texts import KINDS

LIMITS = TrainOptions(sequence_length=20, minimum_length=10)
BUDGET = TopK(12, 2, 2)


@pytest.fixture
def rows(tmp_path):
    """Write texts as token numbers, one row each, and return the file."""

    def write(name, *texts):
        path = tmp_path / name
        path.write_text("".join(json.dumps({"tokens": list(text)}) + "\n" for text in texts))
        return path

    return write


def text(number, length=20):
    return range(1000 * number, 1000 * number + length)


def split(train, validation=(), held_out=()):
    return read_splits(SplitFiles(train, validation, held_out), None, LIMITS, 10**6)


def sizes(splits):
    return [len(splits[name]) for name in SPLITS]


def assert_disjoint(splits):
    for one, other in combinations(SPLITS, 2):
        tokens = [{token for s in splits[name] for token in s.tokens} for name in (one, other)]
        assert tokens[0]
        assert tokens[1]
        assert not tokens[0] & tokens[1], (one, other)


@pytest.mark.parametrize(("texts", "expected"), [(3, [1, 1, 1]), (10, [8, 1, 1]), (29, [25, 2, 2])])
def test_a_tenth_of_the_texts_each_is_kept_from_training(rows, texts, expected):
    splits = split([rows("a.jsonl", *map(text, range(texts)))])
    assert sizes(splits) == expected
    assert_disjoint(splits)
    # The order of the file: training texts first, the last ones held out.
    assert splits["train"][0].tokens[0] == 0
    assert splits["held_out"][-1].source == f"a.jsonl:{texts}"


def test_texts_that_are_cut_stay_in_one_split(rows):
    splits = split([rows("a.jsonl", *(text(number, 60) for number in range(5)))])
    assert sizes(splits) == [9, 3, 3]
    sources = [{sequence.source for sequence in splits[name]} for name in SPLITS]
    assert sum(map(len, sources)) == len(set().union(*sources)) == 5


def test_one_long_text_is_shared_out_by_its_sequences(rows):
    splits = split([rows("a.jsonl", text(0, 400))])
    assert sizes(splits) == [16, 2, 2]
    assert_disjoint(splits)
    assert describe_splits(splits) == (
        "sequences: 16 to train on (320 tokens), 2 to choose the step by (40 tokens), "
        "2 held out (40 tokens)"
    )


def test_files_of_their_own_leave_the_training_texts_whole(rows):
    train = [rows("a.jsonl", text(0), text(1))]
    validation, held_out = [rows("b.jsonl", text(2))], [rows("c.jsonl", text(3), text(4))]
    assert sizes(split(train, validation, held_out)) == [2, 1, 2]
    splits = split(train, held_out=held_out)
    assert sizes(splits) == [1, 1, 2]
    assert_disjoint(splits)
    assert splits["validation"][0].tokens[0] == 1000


@pytest.mark.parametrize("short", [0, 3], ids=["", "short"])
@pytest.mark.parametrize(
    ("own", "enough"), [((), 3), (("held_out",), 2), (("validation",), 2)], ids=str
)
def test_too_few_texts_say_how_many_are_needed(rows, own, enough, short):
    files = {name: [rows(f"{name}.jsonl", text(90 + place))] for place, name in enumerate(own)}
    texts = [text(number) for number in range(enough - 1)]
    texts += [text(50 + number, 9) for number in range(short)]  # below the minimum length
    with pytest.raises(DataError) as error:
        split([rows("a.jsonl", *texts)], **files)
    message = str(error.value)
    assert f"expected at least {enough} of 10 tokens or more" in message
    assert f"found {enough - 1}. " in message
    assert [flag in message for flag in ("--held-out FILE", "--validation FILE")] == [
        name not in own for name in ("held_out", "validation")
    ]


@pytest.mark.parametrize("own", [("validation",), ("held_out",), ("validation", "held_out")])
def test_a_text_in_two_splits_is_refused(rows, own):
    train = [rows("a.jsonl", *map(text, range(5)))]
    again = text(2) if len(own) == 1 else text(7)
    files = {name: [rows(f"{name}.jsonl", text(8 + len(name)), again)] for name in own}
    with pytest.raises(DataError) as error:
        split(train, **files)
    places = ["--data (a.jsonl:3)"] if len(own) == 1 else ["--validation (validation.jsonl:2)"]
    places.append("--held-out (held_out.jsonl:2)" if "held_out" in own else "(validation.jsonl:2)")
    assert all(place in str(error.value) for place in places), str(error.value)


def test_a_text_that_is_twice_in_the_training_file_cannot_be_held_out(rows):
    path = rows("a.jsonl", *map(text, (0, 1, 2, 3, 4, 1)))
    with pytest.raises(DataError, match=r"--data .a\.jsonl:2. and --held-out .a\.jsonl:6."):
        split([path])


def planes(seed):
    weight = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(seed))
    return LinearEncoder.from_tensors({"weight": weight}, num_kv_heads=2, group=2, head_dim=8)


def capture(seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((6, 4, 8), (60, 2, 8), (60, 2, 8))
    q, k, v = (torch.randn(shape, generator=generator) for shape in shapes)
    return Capture(3 * q, k, torch.arange(54, 60), 0.5, v)


class Captures(dict):
    """Captures by split, which note at which step each split was asked for."""

    def __init__(self, trainer, **splits):
        super().__init__(splits)
        self.trainer, self.asked = trainer, []

    def __getitem__(self, name):
        self.asked.append((name, self.trainer.taken))
        return super().__getitem__(name)


OPTIONS = TrainOptions(bits=32, budgets=(BUDGET,), evaluate_every=1, patience=3, measured_queries=6)


def trainer_of(encoders):
    """A trainer that has `encoders[n]` after step n."""
    trainer = SimpleNamespace(taken=0)

    def step():
        trainer.taken += 1
        return torch.tensor(1.0)

    trainer.step, trainer.encoder = step, lambda: encoders[trainer.taken]
    return trainer


def test_validation_chooses_the_step_and_held_out_texts_are_looked_at_once(monkeypatch):
    encoders = [planes(seed) for seed in range(9)]
    validation, held_out = [capture(70)], [capture(80)]
    masses = {}
    for name, captures in (("validation", validation), ("held_out", held_out)):
        judge = MeasuredLayers(captures, 1, OPTIONS, torch.device("cpu"))
        masses[name] = [judge.mass(encoder, BUDGET)[0] for encoder in encoders]
    best = {name: max(range(1, 9), key=found.__getitem__) for name, found in masses.items()}
    assert best["validation"] != best["held_out"]

    trainer = trainer_of(encoders)
    made = SimpleNamespace(trainer=lambda *_: trainer)
    monkeypatch.setattr(train_layer_module, "trainable", lambda _: made)
    captures = Captures(trainer, train=[capture(1)], validation=validation, held_out=held_out)
    options = replace(OPTIONS, patience=9)
    bars = Progress(console=Console(quiet=True))
    result = train_layer_module.train_layers(
        captures, [0], "hata", 32, HataRecipe(steps=8), options, bars
    )[0]

    assert torch.equal(result.encoder.weight, encoders[best["validation"]].weight)
    assert result.masses[0]["hata"] == masses["held_out"][best["validation"]]
    judge = MeasuredLayers(validation, 1, OPTIONS, torch.device("cpu"))
    left_out = judge.left_out_weights(result.encoder, BUDGET)
    assert torch.equal(result.left_out, left_out[0])
    judge = MeasuredLayers(held_out, 1, OPTIONS, torch.device("cpu"))
    errors = judge.output_errors(result.encoder, BUDGET, left_out)
    assert list(result.output_errors[0].values()) == [error for (error,) in errors.values()]
    assert captures.asked == [("train", 0), ("validation", 0), ("held_out", 8)]


def test_training_stops_when_the_validation_mass_no_longer_rises(monkeypatch):
    captures = {name: [capture(number)] for number, name in enumerate(SPLITS)}
    judge = MeasuredLayers(captures["validation"], 1, OPTIONS, torch.device("cpu"))
    falling = sorted(map(planes, range(1, 20)), key=lambda e: judge.mass(e, BUDGET), reverse=True)
    trainer = trainer_of([planes(0), *falling])
    made = SimpleNamespace(trainer=lambda *_: trainer)
    monkeypatch.setattr(train_layer_module, "trainable", lambda _: made)
    bars = Progress(console=Console(quiet=True))
    found = train_layer_module.train_layers(
        captures, [0], "hata", 32, HataRecipe(steps=15), OPTIONS, bars
    )
    assert found[0].steps == 1 + OPTIONS.patience


def test_without_files_the_packages_own_texts_of_every_kind_are_taken(tokenizer):
    options = TrainOptions(sequence_length=400, own_tokens=1000)
    splits = read_splits(SplitFiles(train=()), tokenizer, options, 256)
    kinds = {
        split: [sequence.source.partition(":")[0] for sequence in splits[split]] for split in SPLITS
    }
    assert kinds["validation"] == kinds["held_out"] == list(KINDS)
    assert kinds["train"] == [kind for kind in KINDS for _ in range(2)]
    assert all(len(s.tokens) <= 400 for split in SPLITS for s in splits[split])
    again = read_splits(SplitFiles(train=()), tokenizer, options, 256)
    assert again == splits


def test_own_texts_need_a_tokenizer():
    with pytest.raises(DataError, match=r"expected --data FILE, because .* no tokenizer"):
        read_splits(SplitFiles(train=()), None, TrainOptions(), 256)


def test_layers_trained_together_are_as_good_as_alone(monkeypatch):
    """Each has its own heads, its own best step and its own masses."""
    layers = [3, 5]
    each = [{name: [capture(10 * layer + n)] for n, name in enumerate(SPLITS)} for layer in layers]
    joined = {name: [join([own[name][0] for own in each])] for name in SPLITS}
    best, stop = {}, {}
    encoders = [[planes(seed + 30 * n) for seed in range(9)] for n in range(2)]
    for n, layer in enumerate(layers):
        judge = MeasuredLayers(each[n]["validation"], 1, OPTIONS, torch.device("cpu"))
        masses = [judge.mass(encoder, BUDGET)[0] for encoder in encoders[n]]
        best[layer] = max(range(1, 9), key=masses.__getitem__)
        assert best[layer] != stop.get("other")
        stop["other"] = best[layer]

    def both(step):
        weights = torch.cat([own[step].weight for own in encoders])
        one = encoders[0][0]
        return type(one).from_tensors(
            {"weight": weights}, num_kv_heads=2 * one.num_kv_heads, group=one.group,
            head_dim=one.head_dim, **one.options(),
        )  # fmt: skip

    trainer = trainer_of([both(step) for step in range(9)])
    made = SimpleNamespace(trainer=lambda *_: trainer)
    monkeypatch.setattr(train_layer_module, "trainable", lambda _: made)
    bars = Progress(console=Console(quiet=True))
    options = replace(OPTIONS, patience=9)
    found = train_layer_module.train_layers(
        joined, layers, "hata", 32, HataRecipe(steps=8), options, bars
    )
    assert list(found) == layers
    for n, layer in enumerate(layers):
        chosen = encoders[n][best[layer]]
        assert torch.equal(found[layer].encoder.weight, chosen.weight)
        judge = MeasuredLayers(each[n]["held_out"], 1, OPTIONS, torch.device("cpu"))
        assert found[layer].masses[0]["hata"] == pytest.approx(judge.mass(chosen, BUDGET)[0])
        judged = MeasuredLayers(each[n]["validation"], 1, OPTIONS, torch.device("cpu"))
        left_out = judged.left_out_weights(chosen, BUDGET)
        torch.testing.assert_close(found[layer].left_out, left_out[0])
        error = judge.output_errors(chosen, BUDGET, left_out)["with mean"][0]
        assert found[layer].output_errors[0]["hata + mean"] == pytest.approx(error, rel=1e-4)
        assert found[layer].masses[0]["exact"] == pytest.approx(judge.exact(BUDGET)[0])
