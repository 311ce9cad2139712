"""Models other than the demo model's Llama: trained for, loaded and served by the same commands."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.slow

SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 2048,
}
MODELS = {
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {}),
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
            "sliding_window": 64,
            "query_pre_attn_scalar": 32,
        },
    ),
}
BUDGET = 128
YAML = """
method: asymmetric
weights: {weights}
budget: 128
sink: 8
recent: 16
dense_layers: [0]
"""


@pytest.fixture(scope="module", params=sorted(MODELS))
def checkpoint(request, demo_tokenizer, tmp_path_factory):
    """A small model with random weights whose attention is uneven, with the demo's tokenizer."""
    # Not at the top: models import Triton, which tests/kernels has to be the first to import.
    import transformers

    config, model_type, more = MODELS[request.param]
    torch.manual_seed(0)
    # Grammars need to know how an answer ends, as any released model says.
    more = more | {"vocab_size": len(demo_tokenizer), "eos_token_id": demo_tokenizer.eos_token_id}
    config = getattr(transformers, config)(**SHAPE, **more)
    model = getattr(transformers, model_type)(config)
    for module in model.modules():
        if hasattr(module, "q_norm"):
            module.q_norm.weight.data += 3
        elif hasattr(module, "q_proj"):
            module.q_proj.weight.data *= 12
            module.k_proj.weight.data *= 12
    folder = tmp_path_factory.mktemp(request.param) / f"small-{request.param}"
    model.save_pretrained(folder)
    demo_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def weights(checkpoint, make_prompt, tmp_path_factory):
    """Asymmetric codes from the command line, a few steps only."""
    folder = tmp_path_factory.mktemp("weights")
    np.save(folder / "texts.npy", np.array([make_prompt(512, seed) for seed in range(4)]))
    command = ["-m", "hata_sglang.cli", "train", "--model", checkpoint]
    command += ["--data", folder / "texts.npy", "--method", "asymmetric", "--bits", "64"]
    command += ["--steps", "20", "--sequence-length", "512", "--minimum-length", "512"]
    command += ["--budget", "64:8:16", "--out", folder / "codes"]
    subprocess.run([sys.executable, *map(str, command)], check=True)
    return folder / "codes"


def test_serves_as_dense_does_and_sparse_beyond_the_budget(
    checkpoint, weights, start, connect, make_prompt
):
    short = [make_prompt(n, n) for n in (5, 60, BUDGET - 20)]
    long = make_prompt(900, 900)
    flags = ("--model-path", str(checkpoint))
    with start(None, *flags) as server:
        client = connect(server)
        expected = [client.generate(ids) for ids in short]
    with start(YAML.format(weights=weights), *flags) as server:
        client = connect(server)
        assert [client.generate(ids) for ids in short] == expected
        before = client.counters()
        assert before["tokens_attended"] == before["tokens_in_context"] > 0
        client.generate(long)
        after = client.counters()
    steps = after["decode_steps"] - before["decode_steps"]
    assert steps > 0
    sparse_layers = SHAPE["num_hidden_layers"] - 1
    attended = after["tokens_attended"] - before["tokens_attended"]
    assert attended == steps * sparse_layers * BUDGET
