"""The YAML files of the repository and of the package fit the demo model."""

from importlib.resources import files
from pathlib import Path

import pytest

from hata_sglang.config import HataConfig
from hata_sglang.weights import load_weights

ROOT = Path(__file__).resolve().parents[2]
READY = sorted((ROOT / "launch" / "configs").glob("*.yaml"))
DEMO = Path(str(files("hata_sglang") / "configs" / "demo.yaml"))

# SmolLM2-135M-Instruct
LAYERS, CONTEXT, KV_HEADS, HEAD_DIM = 30, 8192, 3, 64


def test_the_examples_are_there():
    assert {path.stem for path in READY} >= {"exact", "random", "ratio", "per_layer"}


@pytest.mark.parametrize("path", [DEMO, *READY], ids=lambda path: path.stem)
def test_fits_the_demo_model(path):
    plans = HataConfig.load(path).resolve(LAYERS, CONTEXT)
    assert plans[0].dense
    for ref in {plan.weights for plan in plans if plan.weights}:
        tensors = load_weights(ref).tensors
        for plan in plans:
            if plan.weights == ref:
                assert tensors[plan.layer].shape == (KV_HEADS, HEAD_DIM, plan.bits)


def test_methods_are_compared_at_the_same_budget():
    demo, exact, random = (
        HataConfig.load(path).resolve(LAYERS, CONTEXT)
        for path in (
            DEMO,
            *(ROOT / "launch" / "configs" / f"{n}.yaml" for n in ("exact", "random")),
        )
    )
    for plans in zip(demo, exact, random, strict=True):
        assert len({(p.dense, p.budget, p.sink, p.recent) for p in plans}) == 1
    assert [plans[5].method for plans in (demo, exact, random)] == ["hata", "exact", "random"]
