"""The YAML files of the repository and of the package fit the demo model."""

from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import pytest

from hata_sglang.config import HataConfig
from hata_sglang.methods import methods
from hata_sglang.shape import AttentionShape
from hata_sglang.weights.auto import ServedModel
from hata_sglang.weights.encoders import load_encoders

ROOT = Path(__file__).resolve().parents[2]
READY = sorted((ROOT / "launch" / "configs").glob("*.yaml"))
DEMO = Path(str(files("hata_sglang") / "configs" / "demo.yaml"))

# SmolLM2-135M-Instruct
LAYERS, CONTEXT = 30, 8192
HEADS = AttentionShape(num_heads=9, num_kv_heads=3, head_dim=64)
CONFIG = SimpleNamespace(
    model_type="llama",
    hidden_size=576,
    num_hidden_layers=LAYERS,
    num_attention_heads=9,
    num_key_value_heads=3,
    vocab_size=49152,
    rope_theta=100000.0,
)


def resolve(path):
    return HataConfig.load(path).resolve(LAYERS, CONTEXT)


@pytest.mark.parametrize("path", [DEMO, *READY], ids=lambda path: path.stem)
def test_fits_the_demo_model(path):
    loaded = load_encoders(resolve(path), HEADS, ServedModel(CONFIG))
    assert loaded.plans[0].dense
    coded = {plan.layer for plan in loaded.plans if plan.ranks == "codes"}
    assert set(loaded.encoders) == coded
    assert all(loaded.encoders[p.layer].bits == p.bits for p in loaded.plans if p.bits)


def test_there_is_a_file_per_method_at_the_same_budget():
    by_method = {path.stem: resolve(path) for path in READY if path.stem in methods()} | {
        "asymmetric": resolve(DEMO)
    }
    assert set(by_method) == set(methods()) - {"rotate"}  # no set of it is shipped
    for plans in zip(*by_method.values(), strict=True):
        assert len({(p.dense, p.budget, p.sink, p.recent) for p in plans}) == 1
    assert all(plans[5].method == method for method, plans in by_method.items())
