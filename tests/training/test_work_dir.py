"""The work folder: captures that runs share, layer groups under a disk bound, going on."""

import shutil

import pytest
from rich.console import Console

from hata_sglang.errors import HataError, Refusal
from hata_sglang.methods.hata import HataRecipe
from hata_sglang.training import captures as captures_module
from hata_sglang.training import train as train_module
from hata_sglang.training.attention_mass import TopK
from hata_sglang.training.capture import Sampling
from hata_sglang.training.train import TrainOptions, train
from stand_in import TransformersModel

RECIPE = HataRecipe(steps=8, queries_per_step=8, keys_per_step=64, sink=2, recent=2)
OPTIONS = TrainOptions(
    bits=32,
    sequence_length=200,
    minimum_length=100,
    sampling=Sampling(queries=16, tail_queries=8, tail=20),
    budgets=(TopK(24, 2, 2),),
    evaluate_every=4,
)
# 2,000 tokens in ten sequences of 16 queries; bfloat16, 2 KV heads, 4 query heads, D = 16; values
# of the two sequences that are not trained on.
LAYER_BYTES = 2 * (2000 * 2 + 400 * 2 + 10 * 16 * 4) * 16


def run(model_dir, text_file, out, work, recipe=RECIPE, method="hata", **options):
    options = TrainOptions(**vars(OPTIONS) | options)
    console = Console(quiet=True)
    return train(
        model_dir,
        [text_file],
        [],
        out,
        recipe=recipe,
        method=method,
        options=options,
        work_dir=work,
        console=console,
    )


@pytest.fixture
def calls(monkeypatch):
    """What ran: ("capture", layers) and ("train", layer), in order."""
    seen = []
    train_layers = train_module.train_layers

    class CountedModel(TransformersModel):
        def __enter__(self):
            self.layers = set()
            return self

        def run(self, jobs, layers):
            if tuple(layers) not in self.layers:
                seen.append(("capture", tuple(layers)))
            self.layers.add(tuple(layers))
            return super().run(jobs, layers)

    def counted_train(captures, layers, *args):
        seen.extend(("train", layer) for layer in layers)
        return train_layers(captures, layers, *args)

    monkeypatch.setattr(captures_module, "ModelProcess", CountedModel)
    monkeypatch.setattr(train_module, "train_layers", counted_train)
    return seen


def test_methods_share_captures(model_dir, text_file, tmp_path, calls):
    run(model_dir, text_file, tmp_path / "a", tmp_path / "work")
    run(model_dir, text_file, tmp_path / "b", tmp_path / "work", bits=64)
    assert calls == [("capture", (0, 1)), *[("train", 0), ("train", 1)] * 2]


def test_the_same_run_again_trains_nothing(model_dir, text_file, tmp_path, calls):
    first = run(model_dir, text_file, tmp_path / "a", tmp_path / "work")
    calls.clear()
    again = run(model_dir, text_file, tmp_path / "b", tmp_path / "work")
    assert calls == []
    assert (again.sha256, again.held_out) == (first.sha256, first.held_out)
    assert again.created_by["layers_from_earlier_run"] == "2"


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"dtype": "float16"},
        {"budgets": (TopK(20, 2, 2),)},
        {"recipe": HataRecipe(steps=7, queries_per_step=8, keys_per_step=64, sink=2, recent=2)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_decides_the_weights_trains_anew(model_dir, text_file, tmp_path, calls, change):
    run(model_dir, text_file, tmp_path / "a", tmp_path / "work")
    calls.clear()
    run(model_dir, text_file, tmp_path / "b", tmp_path / "work", **change)
    assert [call for call in calls if call[0] == "train"] == [("train", 0), ("train", 1)]


def test_other_texts_are_captured_anew(model_dir, text_file, tmp_path, calls):
    run(model_dir, text_file, tmp_path / "a", tmp_path / "work")
    text_file.write_text(text_file.read_text().upper())
    run(model_dir, text_file, tmp_path / "b", tmp_path / "work")
    assert calls.count(("capture", (0, 1))) == 2


def test_a_run_that_was_cut_off_goes_on(model_dir, text_file, tmp_path, calls, monkeypatch):
    whole = run(model_dir, text_file, tmp_path / "whole", tmp_path / "work-1")
    counted = train_module.train_layers

    def cut_off(captures, layers, *args):
        if 1 in layers:
            raise KeyboardInterrupt
        return counted(captures, layers, *args)

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "train_layers", cut_off)
        with pytest.raises(KeyboardInterrupt):
            run(model_dir, text_file, tmp_path / "a", tmp_path / "work-2")
    calls.clear()
    resumed = run(model_dir, text_file, tmp_path / "a", tmp_path / "work-2")
    assert calls == [("train", 1)]
    assert (resumed.sha256, resumed.held_out) == (whole.sha256, whole.held_out)
    assert resumed.created_by["layers_from_earlier_run"] == "1"


def test_captures_without_their_marker_are_made_again(model_dir, text_file, tmp_path, calls):
    run(model_dir, text_file, tmp_path / "a", tmp_path / "work")
    (tmp_path / "work" / "captures.json").unlink()
    shutil.rmtree(tmp_path / "work" / "layers")
    run(model_dir, text_file, tmp_path / "b", tmp_path / "work")
    assert calls.count(("capture", (0, 1))) == 2


def test_layers_are_captured_in_groups_that_fit_the_bound(model_dir, text_file, tmp_path, calls):
    whole = run(model_dir, text_file, tmp_path / "whole", tmp_path / "work-1")
    calls.clear()
    work = tmp_path / "work-2"
    bound = 1.5 * LAYER_BYTES / 1e9
    grouped = run(model_dir, text_file, tmp_path / "a", work, max_disk_gb=bound)
    assert calls == [("capture", (0,)), ("train", 0), ("capture", (1,)), ("train", 1)]
    assert grouped.sha256 == whole.sha256
    assert not list(work.glob("*/layer-000/*.safetensors"))
    stored = sum(path.stat().st_size for path in work.glob("*/layer-001/*.safetensors"))
    assert LAYER_BYTES <= stored < 1.5 * LAYER_BYTES


def test_a_bound_that_holds_no_layer_is_refused(model_dir, text_file, tmp_path, calls):
    bound = 0.9 * LAYER_BYTES / 1e9
    with pytest.raises(Refusal, match=r"--max-disk: expected at least .* fewer or shorter texts"):
        run(model_dir, text_file, tmp_path / "a", tmp_path / "work", max_disk_gb=bound)
    assert calls == []


def test_a_full_disk_is_refused_before_the_model_runs(
    model_dir, text_file, tmp_path, monkeypatch, calls
):
    usage = captures_module.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(captures_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(HataError, match=r"disk at .*: expected .* GB free for.*--max-disk"):
        run(model_dir, text_file, tmp_path / "a", tmp_path / "work")
    assert calls == []


def test_layers_can_be_trained_together(model_dir, text_file, tmp_path, calls, monkeypatch):
    alone = run(model_dir, text_file, tmp_path / "alone", tmp_path / "work-1")
    calls.clear()
    monkeypatch.setattr(train_module, "together", lambda *_: 2)
    both = run(model_dir, text_file, tmp_path / "both", tmp_path / "work-2")
    assert calls == [("capture", (0, 1)), ("train", 0), ("train", 1)]
    assert both.layers == alone.layers
    # The first layer draws the same numbers first.
    exact = [card.held_out[0].per_layer["exact"] for card in (alone, both)]
    assert exact[0] == pytest.approx(exact[1], abs=1e-3)
    assert both.held_out[0].mean["hata"] > both.held_out[0].mean["streaming"]


def test_a_group_of_which_one_layer_was_finished_is_captured_and_trained_whole(
    model_dir, text_file, tmp_path, calls, monkeypatch
):
    monkeypatch.setattr(train_module, "together", lambda *_: 2)
    work = tmp_path / "work"
    whole = run(model_dir, text_file, tmp_path / "a", work)
    # Cut off between two layers of a group, with captures that a later group replaced.
    next(work.glob("layers/*/layer-001.safetensors")).unlink()
    (work / "captures.json").unlink()
    calls.clear()
    again = run(model_dir, text_file, tmp_path / "b", work)
    assert calls == [("capture", (0, 1)), ("train", 0), ("train", 1)]
    assert (again.sha256, again.held_out) == (whole.sha256, whole.held_out)
    assert again.created_by["layers_from_earlier_run"] == "0"
