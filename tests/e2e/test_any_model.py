"""``--model-path`` alone, with models that this package has never seen: calibrated, then served."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hata_sglang.evaluation.server import ServerProcess

pytestmark = pytest.mark.slow

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
}
MODELS = {
    "OLMo 2": ("Olmo2Config", "Olmo2ForCausalLM", {}),
    "Qwen3 with experts": (
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2},
    ),
}
#: Of configs/default.yaml: what it reads of contexts of less than 20 times as many tokens.
BUDGET = 1024


@pytest.fixture(params=sorted(MODELS))
def checkpoint(request, demo_tokenizer, tmp_path):
    """A small model with random weights, with the demo's tokenizer."""
    # Not at the top: models import Triton, which tests/kernels has to be the first to import.
    import transformers

    config, model_type, more = MODELS[request.param]
    torch.manual_seed(0)
    more = more | {"vocab_size": len(demo_tokenizer), "eos_token_id": demo_tokenizer.eos_token_id}
    config = getattr(transformers, config)(**SIZES, **more)
    folder = tmp_path / request.param.replace(" ", "-")
    getattr(transformers, model_type)(config).to(torch.bfloat16).save_pretrained(folder)
    demo_tokenizer.save_pretrained(folder)
    return folder


def test_a_model_path_is_enough(checkpoint, connect, make_prompt, tmp_path):
    theta = 20_000.0
    changed = {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}
    arguments = ["--model-path", str(checkpoint), "--json-model-override-args", json.dumps(changed)]
    cache = {"HATA_CACHE": str(tmp_path / "cache")}
    cache["HATA_CALIBRATION"] = "--own-tokens 2048 --steps 100"
    log = tmp_path / "server.log"
    with ServerProcess(arguments, env=cache, log=log) as server:
        client = connect(server)
        before = client.counters()
        client.generate(make_prompt(1500, 1))
        after = client.counters()
        assert (after["method"], after["bits"], after["layers"]) == ("asymmetric", 128, "2")
        steps = after["decode_steps"] - before["decode_steps"]
        assert after["tokens_attended"] - before["tokens_attended"] == steps * BUDGET > 0
    text = log.read_text()
    assert "no YAML named: method asymmetric, bits 128, weights auto" in text
    assert f"no hash weights for {checkpoint.name} yet: calibrating asymmetric codes" in text
    assert "held-out attention mass" in text
    (card,) = Path(cache["HATA_CACHE"]).rglob("card.json")
    assert json.loads(card.read_text())["fingerprint"]["rope_theta"] == theta
    made = card.stat().st_mtime_ns
    # The next start finds the set.
    with ServerProcess(arguments, env=cache, log=log) as server:
        assert connect(server).counters()["bits"] == 128
    assert "calibrating" not in log.read_text()
    assert card.stat().st_mtime_ns == made
