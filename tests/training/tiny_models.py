"""Tiny models of several architectures, one with experts, with random weights."""

from __future__ import annotations

import torch
import transformers

COMMON = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Its softmax scale is not that of the head size, and only the last of three layers sees everything.
GEMMA = COMMON | {
    "num_hidden_layers": 3,
    "sliding_window": 32,
    "query_pre_attn_scalar": 40,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    },
}


MODELS = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**COMMON)),
    "qwen2-window": lambda: transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            **COMMON, use_sliding_window=True, sliding_window=32, max_window_layers=1
        )
    ),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**COMMON)),
    "gemma3_text": lambda: transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**GEMMA)),
    "qwen3_moe": lambda: transformers.Qwen3MoeForCausalLM(
        transformers.Qwen3MoeConfig(
            **COMMON, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2
        )
    ),
    "olmo2": lambda: transformers.Olmo2ForCausalLM(transformers.Olmo2Config(**COMMON)),
}


def tiny_model(name):
    """The model, float32, whose attention is uneven enough to be ranked."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for module in model.get_decoder().modules():
        if hasattr(module, "q_proj"):
            for projection in (module.q_proj, module.k_proj):
                projection.weight.data *= 25
                if projection.bias is not None:
                    projection.bias.data.normal_()
            if hasattr(module, "q_norm"):
                module.q_norm.weight.data += 2
    return model
