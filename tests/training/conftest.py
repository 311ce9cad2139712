"""A tiny Llama with random weights and a tokenizer of single bytes, saved as a checkpoint."""

import random

import pytest
import torch

from stand_in import TransformersModel

CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
)


def byte_tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(scope="session", autouse=True)
def by_transformers():
    """Train without SGLang, whose process takes seconds to start; test_recording.py has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hata_sglang.training.captures.ModelProcess", TransformersModel)
        yield


@pytest.fixture(scope="session")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """Checkpoint of 2 layers, 4 query heads on 2 KV heads, D = 16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny") / "tiny-llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
    )
    model = LlamaForCausalLM(config)
    for layer in model.model.layers:
        # random weights attend evenly; larger ones give attention that can be ranked
        layer.self_attn.q_proj.weight.data *= 25
        layer.self_attn.k_proj.weight.data *= 25
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def sentence(rng):
    words = ["river", "stone", "lamp", "walks", "reads", "green", "under", "seven", "old", "door"]
    return " ".join(rng.choices(words, k=8)) + ". "


@pytest.fixture
def text_file(tmp_path):
    """2,000 bytes of text: ten sequences of 200 tokens."""
    rng = random.Random(0)
    path = tmp_path / "train.txt"
    path.write_text("".join(sentence(rng) for _ in range(60))[:2000], encoding="utf-8")
    return path
