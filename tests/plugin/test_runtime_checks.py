"""Checks that run in the scheduler process, or only on a GPU: what they refuse, in what words."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from hata_sglang.config import HataConfig
from hata_sglang.errors import HataError, Refusal
from hata_sglang.seams.session import Session
from hata_sglang.shape import ModelShape
from hata_sglang.weights.auto import ServedModel
from hata_sglang.weights.encoders import load_encoders

SHAPE = ModelShape(num_layers=3, num_heads=4, num_kv_heads=2, head_dim=16, context_len=512)


def make_session(method: str = "random", shape: ModelShape = SHAPE) -> Session:
    config = HataConfig.parse({"method": method, "budget": 128, "dense_layers": [0]})
    plans = config.resolve(shape.num_layers, shape.context_len)
    loaded = load_encoders(plans, shape, ServedModel(None))
    return Session(config, shape, loaded.plans, loaded.encoders)


@pytest.fixture(scope="module")
def layers():
    """`hata_sglang.seams.layers`; it imports SGLang's attention, as `backend` does."""
    from hata_sglang.seams import cpu_preview

    cpu_preview.enable()
    from hata_sglang.seams import layers

    return layers


def make_layers(layers, **changed):
    """Three attention layers; the keywords change layer 1."""
    model = torch.nn.Module()
    for i in range(3):
        layer = layers.RadixAttention(4, 16, 0.25, 2, i, **(changed if i == 1 else {}))
        model.add_module(f"layer{i}", layer)
    return model


def test_plain_layers_pass(layers):
    layers.check_layers(make_layers(layers), [1, 2])


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"logit_cap": 30.0}, "logit_cap 30.0"),
        ({"sliding_window_size": 128}, "sliding_window_size 128"),
        ({"is_cross_attention": True}, "is_cross_attention True"),
        ({"use_irope": True}, "use_irope True"),
        ({"v_head_dim": 8}, "found 16 and 8"),
    ],
)
def test_other_attention_is_refused(layers, changed, found):
    with pytest.raises(Refusal, match="attention of layer 1") as refusal:
        layers.check_layers(make_layers(layers, **changed), [1, 2])
    assert found in str(refusal.value)


def test_other_attention_passes_in_a_dense_layer(layers):
    layers.check_layers(make_layers(layers, logit_cap=30.0), [0, 2])


def test_a_server_is_told_what_else_it_can_do(layers):
    from hata_sglang.seams.validate import check_runner

    pool = SimpleNamespace(hata_codes=object())
    runner = SimpleNamespace(
        token_to_kv_pool=pool,
        model=make_layers(layers, logit_cap=30.0),
        kv_cache_dtype=torch.bfloat16,
    )
    with pytest.raises(Refusal, match=r"attention of layer 1 \(or list it under dense_layers\): "):
        check_runner(runner, make_session())


@pytest.mark.parametrize(
    ("changed", "head_dim", "dtype", "capability", "expected"),
    [
        ({}, 64, torch.bfloat16, (9, 0), [0, 1]),
        ({}, 64, torch.float16, (10, 0), [0, 1]),
        ({"logit_cap": 30.0}, 64, torch.bfloat16, (9, 0), [0]),
        ({"sliding_window_size": 128}, 64, torch.bfloat16, (9, 0), [0]),
        ({"v_head_dim": 32}, 64, torch.bfloat16, (9, 0), [0]),
        ({}, 16, torch.bfloat16, (9, 0), []),
        ({}, 64, torch.float32, (9, 0), []),
        ({}, 64, torch.bfloat16, (8, 9), []),
    ],
)
def test_dense_layers_that_hata_decodes(
    layers, monkeypatch, changed, head_dim, dtype, capability, expected
):
    """Layers 0 and 1 are dense, layer 2 is sparse."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    shape = replace(SHAPE, head_dim=head_dim)
    config = HataConfig.parse({"method": "exact", "budget": 128, "dense_layers": [0, 1]})
    session = Session(config, shape, config.resolve(3, 512), {})
    model = [
        layers.RadixAttention(4, head_dim, 0.25, 2, i, **(changed if i == 1 else {}))
        for i in range(3)
    ]
    device = torch.device("cuda")
    assert layers.dense_layers(model, session, dtype, device) == expected


def test_layers_without_softmax_attention_are_refused(layers):
    with pytest.raises(Refusal, match=r"none in layers \[1, 2\]"):
        layers.check_layers(torch.nn.Linear(1, 1), [1, 2])


def test_keys_written_past_the_pool_stop_the_server():
    from hata_sglang.seams import backend

    dense, sparse = make_session().plans[:2]
    for plan in (None, dense):  # the inner backend's business
        backend._require_keys(plan, k=None, save_kv_cache=False)
    backend._require_keys(sparse, k=torch.zeros(1), save_kv_cache=True)
    for k, save in ((None, True), (torch.zeros(1), False)):
        with pytest.raises(HataError, match="layer 1: expected the attention backend to write"):
            backend._require_keys(sparse, k=k, save_kv_cache=save)


@pytest.mark.parametrize(
    ("device", "backend_name", "line"),
    [
        ("xpu", "triton", "--device: expected cuda (NVIDIA) or cpu, found xpu"),
        ("cuda", "torch_native", "expected flashinfer, fa3 or triton, found torch_native"),
        ("cuda", "trtllm_mha", "expected one of flashinfer, fa3, triton, torch_native"),
    ],
)
def test_devices_and_inner_backends(device, backend_name, line):
    from hata_sglang.seams.validate import _devices

    args = SimpleNamespace(device=device, attention_backend=backend_name)
    assert any(line in str(problem) for problem in _devices(args))


def test_code_bytes_are_counted_per_token():
    """Two coded layers, two KV heads, 128 bits: 64 bytes a token; layer 0 is dense."""
    assert make_session().code_bytes_per_token == 2 * 2 * 16
    assert make_session("exact").code_bytes_per_token == 0
    assert make_session("streaming").code_bytes_per_token == 0


def test_random_weights_are_the_same_in_every_process():
    first, second = make_session().plans[1:]

    def weight(plan):
        return (
            load_encoders([plan], SHAPE, ServedModel(None)).encoders[plan.layer].tensors()["weight"]
        )

    assert torch.equal(weight(first), weight(first))
    assert not torch.equal(weight(first), weight(second))
