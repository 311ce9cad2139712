"""The authors' files, made here with their structure, become sets of weights; hostile ones not."""

import argparse
import contextlib
import os
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig

from hata_sglang.errors import Refusal
from hata_sglang.training.import_hashattention import (
    add_import_arguments,
    import_hashattention,
    run_import,
)
from hata_sglang.training.tensor_files import load_tensor_pickle
from hata_sglang.weights import check_against_model, load_weights


class Transformation(nn.Module):
    """One layer of the authors' training state: a list of MLPs per side, one per query head."""

    def __init__(self, heads, dim, layers, bits):
        super().__init__()
        for side in "kq":
            mlps = nn.ModuleList(self.mlp(dim, layers, bits) for _ in range(heads))
            setattr(self, f"learning_to_hash_transformation_{side}", mlps)

    @staticmethod
    def mlp(dim, layers, bits):
        sizes = [dim, *[24] * (layers - 1), bits]
        parts = []
        for n in range(layers):
            parts += [nn.Linear(sizes[n], sizes[n + 1]), nn.SiLU()]
        return nn.Sequential(*parts[:-1])


def modules(count=2, heads=4, dim=16, layers=3, bits=32):
    torch.manual_seed(0)
    return nn.ModuleList(Transformation(heads, dim, layers, bits) for _ in range(count)).bfloat16()


def converted(authors):
    """What the authors' conversion pickles: layer -> lists of tensors over the MLPs' layers."""
    content = {}
    for number, layer in enumerate(authors):
        lists = content[number] = {}
        for side, name in (("q", "query"), ("k", "key")):
            mlps = getattr(layer, f"learning_to_hash_transformation_{side}")
            linear = [[part for part in mlp if isinstance(part, nn.Linear)] for mlp in mlps]
            by_place = list(zip(*linear, strict=True))
            lists[f"{name}_matrix"] = [
                torch.stack([part.weight.detach().t() for part in parts]) for parts in by_place
            ]
            lists[f"{name}_bias"] = [
                torch.stack([part.bias.detach() for part in parts]) for parts in by_place
            ]
    return content


@pytest.fixture(params=["pt", "pkl", "pkl-of-arrays"])
def file(request, tmp_path):
    authors = modules()
    if request.param == "pt":
        path = tmp_path / "llama.pt"
        torch.save(authors.state_dict(), path)
        return path
    content = converted(authors)
    if request.param == "pkl-of-arrays":
        for lists in content.values():
            for name, tensors in lists.items():
                lists[name] = [tensor.float().numpy() for tensor in tensors]
    path = tmp_path / "llama.hat_weights.pkl"
    path.write_bytes(pickle.dumps(content))
    return path


def test_imported_weights_give_the_authors_bits(file, model_dir, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    add_import_arguments(parser)
    out = tmp_path / "imported"
    args = parser.parse_args([str(file), "--model", str(model_dir), "--out", str(out)])
    assert run_import(args) == 0
    assert "2 layers, 64 bits per token and KV head" in capsys.readouterr().out
    weights = load_weights(out)
    assert check_against_model(weights, AutoConfig.from_pretrained(model_dir)) == []

    x = torch.randn(50, 4, 16, generator=torch.Generator().manual_seed(3))
    authors = modules().float()
    for layer in range(2):
        encoder = weights.encoder(layer)
        words = encoder.key_bits(x[:, :2]).unflatten(2, (2, 32)).flatten(1, 2)
        queries = encoder.query_bits_of(x)[:, :, 0].unflatten(2, (2, 32)).flatten(1, 2)
        for head in range(4):
            key_mlp = authors[layer].learning_to_hash_transformation_k[head]
            query_mlp = authors[layer].learning_to_hash_transformation_q[head]
            assert torch.equal(words[:, head], key_mlp(x[:, head // 2]) > 0)
            assert torch.equal(queries[:, head], query_mlp(x[:, head]) > 0)


def test_the_card_says_where_they_come_from(file, model_dir, tmp_path):
    card = import_hashattention(file, model_dir, tmp_path / "w", dtype="float16")
    assert (card.method, card.bits, card.layers) == ("hashattention", 64, (0, 1))
    assert card.training_data.files.keys() == {file.name}
    assert card.training_data.description.startswith("imported, not trained here")
    assert card.recipe["imported_from"] == file.name
    assert card.held_out == ()
    assert card.training_data.step_chosen_on == "nothing"
    assert str(tmp_path) not in card.model_dump_json()


@pytest.mark.parametrize("layers", [1, 2])
def test_mlps_of_fewer_layers(layers, model_dir, tmp_path):
    path = tmp_path / "a.pt"
    torch.save(modules(layers=layers).state_dict(), path)
    card = import_hashattention(path, model_dir, tmp_path / "w")
    assert len(card.shapes) == 4 * layers


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"count": 3}, "expected 2 layers, as tiny-llama has, found 3 layers"),
        ({"heads": 2}, r"layer 0: expected MLPs of 4 query heads from 16 numbers to 32 bits"),
        ({"dim": 32}, r"layer 0: expected MLPs of 4 query heads from 16 numbers to 32 bits"),
        ({"bits": 64}, r"layer 0: expected MLPs of 4 query heads from 16 numbers to 32 bits"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("kind", ["pt", "pkl"])
def test_weights_of_another_model_are_refused(kind, shape, message, model_dir, tmp_path):
    path = tmp_path / f"a.{kind}"
    if kind == "pt":
        torch.save(modules(**shape).state_dict(), path)
    else:
        path.write_bytes(pickle.dumps(converted(modules(**shape))))
    with pytest.raises(Refusal, match=message):
        import_hashattention(path, model_dir, tmp_path / "w")
    assert not (tmp_path / "w").exists()


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def hostile_storage(path):
    """A tensor's pickle whose inner bytes, torch's own format, are the attack."""
    inner = pickle.dumps(Hostile(path), protocol=2)

    class Storage:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (inner,)

    return Storage()


@pytest.mark.parametrize("kind", [Hostile, hostile_storage], ids=["outside", "inside-a-tensor"])
def test_a_hostile_pickle_is_refused_and_not_run(kind, model_dir, tmp_path):
    content = converted(modules())
    content[0]["key_bias"][0] = kind(tmp_path / "harm")
    attack = pickle.dumps(content)
    path = tmp_path / "a.pkl"
    path.write_bytes(attack)
    with pytest.raises(Refusal, match=r"a\.pkl: expected a pickle of"):
        import_hashattention(path, model_dir, tmp_path / "w")
    assert not (tmp_path / "harm").exists()
    # The attack itself works: a reader without restrictions runs it.
    with contextlib.suppress(Exception):
        pickle.loads(attack)
    assert (tmp_path / "harm").is_dir()


def test_a_hostile_name_is_named(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(Hostile(tmp_path / "harm")))
    with pytest.raises(Refusal, match=r"found posix\.mkdir, which was not run"):
        load_tensor_pickle(path)


def test_a_hostile_state_dict_is_refused_and_not_run(model_dir, tmp_path):
    path = tmp_path / "a.pt"
    torch.save(modules().state_dict() | {"extra": Hostile(tmp_path / "harm")}, path)
    with pytest.raises(Refusal, match=r"a\.pt: expected a state dict of tensors"):
        import_hashattention(path, model_dir, tmp_path / "w")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.zip", {}, "a name that ends in .pt, .pth, .bin, .pkl"),
        ("a.pkl", [1], "a dict of layers, found a list"),
        ("a.pkl", {0: {"query_matrix": []}}, "key_bias, key_matrix, query_bias, query_matrix"),
        ("a.pkl", {"0": {}}, "expected layer numbers"),
        (
            "a.pkl",
            {
                0: {
                    f"{side}_{kind}": [1]
                    for side in ("key", "query")
                    for kind in ("bias", "matrix")
                }
            },
            "another structure .TypeError: expected a tensor, found int",
        ),
    ],
)
def test_other_structures_are_refused(name, content, message, model_dir, tmp_path):
    path = tmp_path / name
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(Refusal, match=message):
        import_hashattention(path, model_dir, tmp_path / "w")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(other=torch.zeros(1)), "learning_to_hash_transformation.*'other'"),
        (lambda s: s.pop("1.learning_to_hash_transformation_q.2.4.bias"), r"heads 0 to 2 in layer"),
    ],
    ids=["unknown-name", "missing-head"],
)
def test_other_state_dicts_are_refused(change, message, model_dir, tmp_path):
    state = dict(modules().state_dict())
    change(state)
    path = tmp_path / "a.pt"
    torch.save(state, path)
    with pytest.raises(Refusal, match=message):
        import_hashattention(path, model_dir, tmp_path / "w")


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({0: np.zeros(100)})[:-50])
    with pytest.raises(Refusal, match=r"a\.pkl: expected a pickle of nothing but tensors"):
        load_tensor_pickle(path)
    with pytest.raises(Refusal, match=r"none\.pkl: expected a pickle of .*, found no such file"):
        load_tensor_pickle(tmp_path / "none.pkl")
