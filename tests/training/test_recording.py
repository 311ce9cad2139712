"""Queries, keys and values of a model in SGLang are those that transformers' attention gets."""

from functools import partial

import numpy as np
import pytest
import torch

import tiny_models as tiny
from hata_sglang.errors import HataError
from hata_sglang.seams import recording
from hata_sglang.seams.model_process import Job, ModelProcess
from hata_sglang.training.architectures import plan_layers
from hata_sglang.training.capture import CaptureStore, Sampling, capture_jobs
from hata_sglang.training.checkpoint import read_config
from hata_sglang.training.data import TokenSequence
from stand_in import TransformersModel

SAMPLING = Sampling(queries=16, tail_queries=8, tail=20)
TRAINED = {"gemma3_text": (2,), "qwen2-window": (0,)}


def save(name, folder, change=None):
    model = tiny.tiny_model(name)
    if change is not None:
        change(model)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def sequences(*lengths):
    dice = torch.Generator().manual_seed(1)
    return [
        TokenSequence("test", tuple(torch.randint(3, 256, (n,), generator=dice).tolist()))
        for n in lengths
    ]


def keep(folder, layer, found):
    torch.save(found._asdict(), folder / f"{layer}.pt")


def run(make, folder, texts, layers, store):
    jobs = capture_jobs(texts, store, SAMPLING, seed=0, values=True)
    with make(folder, "cpu", max(len(text.tokens) for text in texts)) as model:
        assert list(model.run(jobs, layers)) == list(range(1, len(texts) + 1))
    return store


def distance(found, expected):
    """Of tensors, as a part of the second's norm; SGLang's are bfloat16's, the others float32's."""
    return float((found - expected).norm() / expected.norm())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(tiny.MODELS))
def test_sglang_gives_what_transformers_gives(name, tmp_path):
    folder = save(name, tmp_path / name)
    layers = plan_layers(read_config(folder)).trained
    assert layers == TRAINED.get(name, (0, 1))
    texts = sequences(80, 33)
    ours = run(ModelProcess, folder, texts, layers, CaptureStore(tmp_path / "sglang"))
    theirs = run(TransformersModel, folder, texts, layers, CaptureStore(tmp_path / "transformers"))
    for layer in layers:
        for number in range(len(texts)):
            a, b = ours.read(layer, number), theirs.read(layer, number)
            assert torch.equal(a.positions, b.positions)
            assert a.scale == pytest.approx(b.scale)
            for found, expected in ((a.q, b.q), (a.k, b.k), (a.v, b.v)):
                assert found.shape == expected.shape
                assert distance(found, expected) < 0.08, f"layer {layer}"


@pytest.mark.slow
def test_long_sequences_go_through_in_steps(tmp_path):
    def lengthen(model):
        model.config.max_position_embeddings = 16_384

    folder = save("llama", tmp_path / "llama", lengthen)
    texts = sequences(recording.CHUNK + 100)
    ours = run(ModelProcess, folder, texts, [1], CaptureStore(tmp_path / "a")).read(1, 0)
    theirs = run(TransformersModel, folder, texts, [1], CaptureStore(tmp_path / "b")).read(1, 0)
    assert (ours.positions < recording.CHUNK).any()
    assert (ours.positions >= recording.CHUNK).any()
    for found, expected in ((ours.q, theirs.q), (ours.k, theirs.k), (ours.v, theirs.v)):
        assert distance(found, expected) < 0.08
        assert distance(found[-90:], expected[-90:]) < 0.08


@pytest.mark.slow
def test_what_the_model_writes_is_recorded_as_if_it_had_been_given(tmp_path):
    folder = save("qwen3", tmp_path / "qwen3")
    (text,) = sequences(60)
    positions = torch.tensor([40, 61, 62, 70])
    with ModelProcess(folder, "cpu", 72) as model:
        job = Job(text.tokens, positions, partial(keep, tmp_path), written=12)
        assert list(model.run([job], [0, 1])) == [1]
    ours = {layer: torch.load(tmp_path / f"{layer}.pt") for layer in (0, 1)}
    tokens = ours[0]["tokens"]
    assert (len(tokens), tokens[:60]) == (72, text.tokens)
    assert len(set(tokens[60:])) > 1
    given = [TokenSequence("written", tokens)]
    theirs = run(TransformersModel, folder, given, [0, 1], CaptureStore(tmp_path / "b"))
    for layer, found in ours.items():
        expected = theirs.read(layer, 0)
        assert len(found["q"]) == len(positions)
        assert distance(found["k"], expected.k) < 0.08
        assert distance(found["k"][60:], expected.k[60:]) < 0.08
        assert distance(found["v"][60:], expected.v[60:]) < 0.08


@pytest.mark.slow
def test_what_cannot_be_recorded_is_refused(tmp_path):
    def damage(model):
        model.model.layers[1].self_attn.k_proj.weight.data[0, 0] = torch.nan

    folder = save("llama", tmp_path / "llama", damage)
    with ModelProcess(folder, "cpu", 64) as model:
        jobs = capture_jobs(sequences(40), CaptureStore(tmp_path / "x"), SAMPLING, seed=0)
        with pytest.raises(HataError, match=r"softmax attention in every .* none in layers \[7\]"):
            list(model.run(jobs, [0, 7]))
        # The process goes on; layer 0 is sound.
        assert list(model.run(jobs, [0])) == [1]
        with pytest.raises(HataError, match="model, layer 1: expected finite queries, keys"):
            list(model.run(jobs, [0, 1]))


@pytest.mark.slow
def test_a_model_that_sglang_cannot_load_says_why(tmp_path):
    folder = save("llama", tmp_path / "llama")
    (folder / "model.safetensors").write_bytes(b"not weights")
    with ModelProcess(folder, "cpu", 64) as model:
        jobs = capture_jobs(sequences(40), CaptureStore(tmp_path / "x"), SAMPLING, seed=0)
        with pytest.raises(HataError, match=r"expected SGLang to run it, found its process ended"):
            list(model.run(jobs, [0]))
        log = model.log
    assert not log.exists()


def test_sampled_positions_lie_in_the_second_half_and_favour_the_end():
    positions = Sampling(queries=64, tail_queries=40, tail=50).positions(
        1001, torch.Generator().manual_seed(0)
    )
    assert len(positions) == 64 == len(set(positions.tolist()))
    assert positions.min() >= 500
    assert positions.max() <= 1000
    assert (positions >= 951).sum() >= 40
    assert np.all(np.diff(positions) > 0)


def test_a_short_sequence_gives_its_whole_second_half():
    positions = Sampling().positions(9, torch.Generator().manual_seed(0))
    assert positions.tolist() == [4, 5, 6, 7, 8]
