"""Calibration on captures of live requests: what is trained, compared, swapped in, and refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rich.console import Console

from hata_sglang.cli import main
from hata_sglang.errors import HataError
from hata_sglang.evaluation import client as http
from hata_sglang.methods import methods
from hata_sglang.methods.hata import HataRecipe
from hata_sglang.training.attention_mass import TopK
from hata_sglang.training.calibrate import calibrate
from hata_sglang.training.capture import Capture
from hata_sglang.training.options import TrainOptions
from hata_sglang.training.traffic import TrafficFolder
from hata_sglang.weights import load_weights, save_weights
from test_weights import make_card

RECIPE = HataRecipe(steps=20, queries_per_step=16, keys_per_step=64, sink=2, recent=2)
OPTIONS = TrainOptions(budgets=(TopK(16, 2, 2),), evaluate_every=10, description="requests")
LAYERS = (0, 1)


def add_request(folder, seed):
    """A request whose attention follows a few directions, so that codes can learn it."""
    generator = torch.Generator().manual_seed(seed)
    part, mixing = folder.begin(), torch.randn(3, 16, generator=torch.Generator().manual_seed(99))
    for layer in LAYERS:
        k, q = (
            torch.randn(n, heads, 3, generator=generator) @ mixing
            for n, heads in ((120, 2), (40, 4))
        )
        v = torch.randn(k.shape, generator=generator)
        folder.write(part, layer, Capture(q, k, torch.arange(80, 120), 0.5, v))
    folder.finish(part, 100)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = TrafficFolder(tmp_path_factory.mktemp("traffic"))
    for seed in range(12):
        add_request(made, seed)
    return made


@pytest.fixture
def served(tmp_path):
    """A set of random hyperplanes."""
    sizes = {"num_kv_heads": 2, "group": 2, "head_dim": 16}
    encoders = {
        layer: methods()["hata"].encoder.from_tensors(
            {"weight": torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(layer))},
            **sizes,
        )
        for layer in LAYERS
    }
    save_weights(tmp_path / "served", make_card(), encoders)
    return load_weights(tmp_path / "served")


def run(folder, served, model_dir, out):
    return calibrate(folder, served, model_dir, out, RECIPE, OPTIONS, Console(quiet=True))


def test_a_set_of_the_served_kind_is_made_of_requests(folder, served, model_dir, tmp_path):
    done = run(folder, served, model_dir, tmp_path / "new")
    made = load_weights(tmp_path / "new")
    assert made.card == done.card
    assert (made.card.method, made.card.bits, made.card.layers) == ("hata", 32, LAYERS)
    assert made.card.shapes == served.card.shapes
    assert made.card.model == model_dir.name
    data = made.card.training_data
    assert (data.sequences, data.validation_sequences, data.held_out_sequences) == (10, 1, 1)
    assert (data.tokens, data.held_out_tokens) == (1200, 120)
    assert (data.description, data.files) == ("requests", {})
    mean = made.card.held_out[0].mean
    assert mean["exact"] > done.after == mean["hata"] > done.before
    # Both are of the same requests: what is served, measured as if it were new, says the same.
    again = run(folder, made, model_dir, tmp_path / "again")
    assert again.before == pytest.approx(done.after, abs=1e-4)  # the card is rounded


def test_too_few_requests_are_refused_with_their_number(served, model_dir, tmp_path):
    few = TrafficFolder(tmp_path / "few")
    with pytest.raises(HataError, match=r"expected at least 10 of .*, found 0\. Let the server"):
        run(few, served, model_dir, tmp_path / "new")
    for seed in range(9):
        add_request(few, seed)
    with pytest.raises(HataError, match=r"expected at least 10 of .*, found 9\. Let the server"):
        run(few, served, model_dir, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_damaged_file_is_named(served, model_dir, tmp_path):
    own = TrafficFolder(tmp_path / "own")
    for seed in range(10):
        add_request(own, seed)
    file = next(own.requests()[4].rglob("layer-001/*"))
    file.write_bytes(b"x" * 100)
    with pytest.raises(HataError, match=r"layer-001/.*: expected captures of a layer"):
        run(own, served, model_dir, tmp_path / "new")


def test_a_set_that_could_not_be_swapped_in_ends_after_its_first_layers(
    folder, served, model_dir, tmp_path
):
    recipe = replace(RECIPE, scale_bits=8)
    where = (folder, served, model_dir, tmp_path / "new")
    with pytest.raises(HataError, match=r"tensors of weights tiny, found scale_bits: .* found 8"):
        calibrate(*where, recipe, OPTIONS, Console(quiet=True))
    assert not (tmp_path / "new").exists()


class Server:
    """A running server, as the command sees it."""

    def __init__(self, monkeypatch, model_dir, **facts):
        self.info = {
            "model_path": str(model_dir),
            "revision": None,
            "internal_states": [{"hata": facts or None}],
        }
        self.posted = []
        monkeypatch.setattr(http, "Client", lambda url: self)

    def server_info(self):
        return self.info

    def request(self, path, body):
        self.posted.append((path, body))
        return {"success": True, "message": "swapped"}


COMMAND = ["calibrate", "--steps", "20", "--budget", "16:2:2"]


def test_better_weights_are_swapped_in(folder, served, model_dir, tmp_path, monkeypatch, capsys):
    facts = {"traffic": str(folder.folder), "weights": str(tmp_path / "served")}
    server, out = Server(monkeypatch, model_dir, **facts), tmp_path / "new"
    assert main([*COMMAND, "--out", str(out)]) == 0
    assert server.posted == [("/weights_checker", {"action": f"hata_weights={out}"})]
    assert "on 1 held-out requests at k = 16: 0." in capsys.readouterr().out
    # Three steps at a rate that forgets: worse than what is served now.
    facts["weights"], server.posted = str(out), []
    server.info["internal_states"][0]["hata"] = facts
    options = ["--learning-rate", "30", "--option", "sink=100", "--out", str(tmp_path / "worse")]
    assert main(["calibrate", "--steps", "3", "--budget", "16:2:2", *options]) == 2
    said = capsys.readouterr()
    assert "expected weights that keep no less of the attention" in said.err
    assert load_weights(tmp_path / "worse")
    assert server.posted == []


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({}, "expected a server with the attention backend hata, found another"),
        ({"weights": "x"}, "expected a server whose YAML has `traffic`, found none"),
        ({"weights": ["x", "y"], "traffic": "z"}, "expected one set of weights in all sparse"),
    ],
)
def test_servers_that_have_nothing_to_calibrate(model_dir, monkeypatch, capsys, facts, message):
    Server(monkeypatch, model_dir, **facts)
    assert main(COMMAND) == 2
    assert message in capsys.readouterr().err
