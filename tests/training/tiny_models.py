"""Tiny models of every architecture that can be trained for, with random weights."""

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


def gemma3_multimodal():
    """Gemma 3 as it is published above 1B: the text model inside a multimodal one."""
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**GEMMA),
        vision_config=transformers.SiglipVisionConfig(**vision),
        mm_tokens_per_image=4,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


MODELS = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**COMMON)),
    "mistral": lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(**COMMON, sliding_window=None)
    ),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**COMMON)),
    "qwen2-window": lambda: transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            **COMMON, use_sliding_window=True, sliding_window=32, max_window_layers=1
        )
    ),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**COMMON)),
    "gemma3_text": lambda: transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**GEMMA)),
    "gemma3": gemma3_multimodal,
    "glm": lambda: transformers.GlmForCausalLM(
        transformers.GlmConfig(**COMMON, partial_rotary_factor=0.5)
    ),
    "glm4": lambda: transformers.Glm4ForCausalLM(
        transformers.Glm4Config(**COMMON, partial_rotary_factor=0.5)
    ),
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
