"""``hata-sglang eval offline`` on a tiny model with random weights, from texts to CSV and table."""

import argparse
import csv
import json

import pytest
import torch

from hata_kernels.encoders import LinearEncoder
from hata_sglang.cli import main
from hata_sglang.errors import HataError, Refusal
from hata_sglang.evaluation.offline import add_offline_arguments, run_offline
from hata_sglang.evaluation.report_data import OFFLINE, read_rows, scores
from hata_sglang.files import file_sha256
from hata_sglang.training.attention_mass import TopK, attention_mass, group_attention, select
from hata_sglang.training.capture import CaptureStore, Sampling, capture_jobs
from hata_sglang.training.data import TokenSequence
from hata_sglang.weights import Card, Fingerprint, TrainingData, save_weights
from stand_in import TransformersModel

SIZES = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
SELECTORS = ("exact", "exact_per_head", "quest4", "loki4", "streaming", "random")


@pytest.fixture(scope="module", autouse=True)
def by_transformers():
    """Measure without SGLang, whose process takes seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hata_sglang.evaluation.offline_run.ModelProcess", TransformersModel)
        yield


@pytest.fixture(scope="module")
def model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    found = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    for layer in found.model.layers:
        # random weights attend evenly; larger ones give attention that can be ranked
        layer.self_attn.q_proj.weight.data *= 25
        layer.self_attn.k_proj.weight.data *= 25
    return found


@pytest.fixture(scope="module")
def model_dir(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("offline") / "tiny"
    model.save_pretrained(folder)
    return folder


def token_file(path, sequences, seed):
    dice = torch.Generator().manual_seed(seed)
    rows = [torch.randint(256, (96,), generator=dice).tolist() for _ in range(sequences)]
    path.write_text("".join(json.dumps({"tokens": row}) + "\n" for row in rows))
    return path


@pytest.fixture
def data(tmp_path):
    return token_file(tmp_path / "data.jsonl", 4, seed=0)


@pytest.fixture
def weights(model, tmp_path):
    """A set of random planes under a trained method's name."""
    return make_set(model, tmp_path / "mine", layers=(0, 1, 2))


def make_set(model, folder, layers, files=None, left_out=None):
    dice = torch.Generator().manual_seed(7)
    encoders = {
        layer: LinearEncoder.from_tensors(
            {"weight": torch.randn(2, 16, 32, generator=dice), "scale_step": torch.ones(2)},
            num_kv_heads=2,
            group=2,
            head_dim=16,
            scale_bits=8,
        )
        for layer in layers
    }
    card = Card(
        name=folder.name,
        model="tiny",
        fingerprint=Fingerprint.of(model.config),
        revision="none",
        method="hata",
        bits=32,
        options={"scale_bits": 8},
        layers=layers,
        shapes={"weight": (2, 16, 32), "scale_step": (2,)},
        training_data=TrainingData(
            description="none",
            files=files or {},
            sequences=0,
            tokens=0,
            held_out_files={},
            held_out_sequences=0,
            held_out_tokens=0,
        ),
        seed=0,
        recipe={},
        held_out=(),
        left_out=left_out is not None,
        sha256="",
        created_by={},
    )
    given = {} if left_out is None else dict.fromkeys(layers, left_out)
    save_weights(folder, card, encoders, left_out=given)
    return folder


def parse(model_dir, data, out, *more):
    parser = argparse.ArgumentParser()
    add_offline_arguments(parser)
    words = ["--model", model_dir, "--data", data, "--out", out, "--length", 96, "--queries", 6]
    words += ["--sink", 2, "--recent", 2, "--budgets", 12, 0.25]
    words += ["--selectors", "exact", "loki4", *more]
    return parser.parse_args([str(word) for word in words])


def rows_of(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_end_to_end(model_dir, data, weights, tmp_path, capsys):
    out = tmp_path / "offline.csv"
    more = ["--weights", weights, "--selectors", *SELECTORS, "--bits", 32, 64]
    assert run_offline(parse(model_dir, data, out, *more)) == 0
    printed = capsys.readouterr().out
    assert "quest4" in printed
    assert f"wrote {out}" in printed.replace("\n", "")

    rows = rows_of(out)
    # seven selectors and a set; three layers, two KV heads, two budgets
    assert len(rows) == 8 * 3 * 2 * 2
    bits = {(row["selector"], row["method"], row["bits"]) for row in rows}
    assert bits == {
        ("exact", "exact", ""),
        ("exact_per_head", "exact_per_head", ""),
        ("quest4", "quest", "128"),
        ("loki4", "loki", "64"),
        ("streaming", "streaming", ""),
        ("random", "random", "32"),
        ("random", "random", "64"),
        ("mine", "hata", "40"),
    }
    assert {(row["layer"], row["dense"]) for row in rows} == {("0", "1"), ("1", "1"), ("2", "0")}
    assert {row["budget"] for row in rows} == {"12", "0.25"}
    for row in rows:
        # Loki learnt from the first half of the four sequences
        assert (row["queries"], row["sequences"], row["length"]) == ("12", "2", "96")
        assert row["torch"]
        assert row["commit"]
        assert 0 < float(row["mass"]) <= 1
        assert float(row["relative_mass"]) <= (1.5 if row["selector"] == "exact_per_head" else 1)
        assert 12 <= float(row["tokens"]) <= 24
        if row["selector"] == "exact":
            assert float(row["recall"]) == float(row["relative_mass"]) == 1
    # the table averages layer 2 alone: the others are served dense
    masses = [
        float(row["mass"])
        for row in rows
        if (row["layer"], row["selector"], row["budget"]) == ("2", "quest4", "12")
    ]
    line = next(line for line in printed.splitlines() if line.startswith("| quest4 | 128 | 12 |"))
    assert f" | {sum(masses) / 2:.4f} [" in line
    # what `eval report` reads
    found = scores(read_rows([out])["offline"], OFFLINE, "output_error")
    assert len(found) == 8 * 2


def test_a_set_that_weighs_the_mean_is_measured_with_and_without_it(
    model, model_dir, data, tmp_path
):
    left_out = torch.linspace(0, 0.5, 8).repeat(4, 1)
    make_set(model, tmp_path / "mean", (0, 1, 2), left_out=left_out)
    make_set(model, tmp_path / "zero", (0, 1, 2), left_out=0 * left_out)
    out = tmp_path / "offline.csv"
    sets = ["--weights", tmp_path / "mean", tmp_path / "zero", "--selectors", "exact"]
    run_offline(parse(model_dir, data, out, *sets))
    rows = {}
    for row in rows_of(out):
        rows.setdefault((row["selector"], row["left_out"]), []).append(row)
    with_mean = [
        (f"{name} + mean", own) for own in ("mean", "zero") for name in (own, f"exact ({own})")
    ]
    assert rows.keys() == {("exact", ""), ("mean", ""), ("zero", ""), *with_mean}

    def column(key, name):
        return [row[name] for row in rows[key]]

    for name, own in with_mean:
        plain = ("exact", "") if name.startswith("exact") else (own, "")
        assert column((name, own), "mass") == column(plain, "mass")
        same = column((name, own), "output_error") == column(plain, "output_error")
        assert same == (own == "zero")


def test_numbers_are_those_of_the_training_captures(model_dir, data, tmp_path):
    out = tmp_path / "offline.csv"
    more = ["--selectors", "streaming", "--layers", 2, "--seed", 5]
    run_offline(parse(model_dir, data, out, *more))
    sequences = [
        TokenSequence("", tuple(json.loads(line)["tokens"]))
        for line in data.read_text().splitlines()
    ]
    store = CaptureStore(tmp_path / "captures")
    jobs = capture_jobs(sequences, store, Sampling(6, 3), seed=5)
    list(TransformersModel(model_dir, "cpu", 96).run(jobs, [2]))
    masses = []
    for number in range(4):
        capture = store.read(2, number)
        attention = group_attention(capture.q, capture.k, capture.positions, capture.scale)
        scores = torch.arange(96.0).expand_as(attention)
        chosen = select(scores, capture.positions, TopK(12, 2, 2))
        masses.append(attention_mass(attention, chosen).mean(1))
    expected = torch.stack(masses).mean(0).tolist()
    found = [float(row["mass"]) for row in rows_of(out) if row["budget"] == "12"]
    assert found == pytest.approx(expected, abs=1e-5)


def test_calibration_texts_leave_all_of_the_data_to_measure_on(model_dir, data, tmp_path):
    out = tmp_path / "offline.csv"
    other = token_file(tmp_path / "other.jsonl", 1, seed=1)
    run_offline(parse(model_dir, data, out, "--selectors", "loki4", "--calibration", other))
    assert {row["sequences"] for row in rows_of(out)} == {"4"}


def test_the_command_is_there(capsys):
    with pytest.raises(SystemExit):
        main(["eval", "offline", "--help"])
    assert "--calibration" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--budgets", "4"], "--budgets: expected at least 5 tokens"),
        (["--layers", "1-3"], r"--layers: .*\(0-2\), found 3"),
        (["--dense-layers", "0-2"], "--dense-layers: expected some of the layers"),
        (["--selectors", "loki17"], "--selectors: expected loki with at most 16 .* found loki17"),
        (["--queries", "0"], "--queries: expected at least 1, found 0"),
        (["--recent", "-1"], "--recent: expected at least 0, found -1"),
        (["--sequences", "1"], "others to measure on, found one sequence in all"),
        (["--weights", "nowhere"], "weights: expected a folder of hash weights"),
    ],
)
def test_what_cannot_be_measured_is_refused(model_dir, data, tmp_path, more, message):
    out = tmp_path / "offline.csv"
    with pytest.raises(HataError, match=message):
        run_offline(parse(model_dir, data, out, *more))
    assert not out.exists()


def test_calibrating_on_what_is_measured_is_refused(model_dir, data, tmp_path):
    with pytest.raises(HataError, match="found the same text in both"):
        run_offline(parse(model_dir, data, tmp_path / "x.csv", "--calibration", data))


def test_weights_that_prove_nothing_are_refused(model, model_dir, data, tmp_path):
    trained_on_it = make_set(model, tmp_path / "a", (0, 1, 2), {"t": file_sha256(data)})
    other = make_set(model, tmp_path / "b", (1, 2))
    more = ["--weights", trained_on_it, other, trained_on_it]
    with pytest.raises(Refusal) as error:
        run_offline(parse(model_dir, data, tmp_path / "x.csv", *more))
    message = str(error.value)
    assert "--data: expected texts that a was not trained on" in message
    assert "--weights, layers 0: expected trained weights, found none in b; give --layers 1-2" in (
        message
    )
    assert "found a twice" in message


@pytest.mark.parametrize(("step_chosen_on", "refused"), [("held_out", True), ("validation", False)])
def test_texts_that_chose_the_training_step_prove_nothing(
    model, model_dir, data, tmp_path, step_chosen_on, refused
):
    folder = make_set(model, tmp_path / "a", (0, 1, 2))
    card = json.loads((folder / "card.json").read_text())
    card["training_data"] |= {
        "held_out_files": {"held_out.jsonl": file_sha256(data)},
        "step_chosen_on": step_chosen_on,
    }
    (folder / "card.json").write_text(json.dumps(card))
    arguments = parse(model_dir, data, tmp_path / "x.csv", "--weights", folder)
    if refused:
        with pytest.raises(Refusal, match="--data: expected texts that a was not trained on"):
            run_offline(arguments)
    else:
        assert run_offline(arguments) == 0
