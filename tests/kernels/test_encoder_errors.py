"""Encoders name the weights, keys and queries that do not fit."""

from __future__ import annotations

import pytest
import torch

import encoder_cases as cases
from hata_kernels.encoders import LinearEncoder, MlpEncoder

SHAPE = {"num_kv_heads": 2, "group": 3, "head_dim": 64}
LINEAR = {"weight": torch.randn(2, 64, 64)}
STEP = {"scale_step": torch.ones(2)}
ASYMMETRIC = cases.make_tensors("asymmetric", 2, 3, 64, 64)
MLP = cases.make_tensors("hashattention", 2, 3, 64, 96)


@pytest.mark.parametrize(
    ("method", "tensors", "options", "message"),
    [
        ("hata", {}, {}, "tensors: expected weight, found none"),
        ("hata", {"weight": torch.randn(2, 32, 64)}, {}, r"weight\.shape: expected \[2, 64, any\]"),
        (
            "hata",
            {"weight": torch.randn(2, 64, 48)},
            {},
            "bits: expected a multiple of 32, found 48",
        ),
        ("hata", {"weight": LINEAR["weight"].int()}, {}, r"weight\.dtype"),
        ("hata", LINEAR, {"scale_bits": 8}, "tensors: expected scale_step, weight, found weight"),
        ("hata", {**LINEAR, **STEP}, {}, "tensors: expected weight, found scale_step, weight"),
        ("hata", {**LINEAR, **STEP}, {"scale_bits": 4}, "scale_bits: expected 0, 8 or 16, found 4"),
        (
            "hata",
            {**LINEAR, "scale_step": torch.tensor([1.0, 0.0])},
            {"scale_bits": 8},
            "scale_step: expected positive numbers",
        ),
        ("hata", LINEAR, {"clip": 1.0}, "options of LinearEncoder: expected .*, found clip"),
        ("asymmetric", ASYMMETRIC, {"query_bits": 9}, "query_bits: expected 1 to 8, found 9"),
        ("asymmetric", ASYMMETRIC, {"clip": 0.0}, "clip: expected a positive number"),
        ("asymmetric", ASYMMETRIC, {"stages": 3}, "stages: expected 1 or 2, found 3"),
        (
            "asymmetric",
            ASYMMETRIC,
            {"stages": 2},
            "tensors: expected .*query_weight, residual_weight, found .*query_weight$",
        ),
        (
            "asymmetric",
            {**ASYMMETRIC, "residual_weight": torch.randn(2, 32, 32)},
            {},
            "tensors: expected .*query_weight, found .*query_weight, residual_weight$",
        ),
        (
            "asymmetric",
            {**ASYMMETRIC, "residual_weight": torch.randn(2, 64, 32)},
            {"stages": 2},
            r"residual_weight\.shape: expected \[2, 32, 32\], found \[2, 64, 32\]",
        ),
        (
            "asymmetric",
            {**ASYMMETRIC, "query_weight": torch.randn(2, 64, 64)},
            {},
            r"query_weight\.shape: expected \[2, 192, 64\], found \[2, 64, 64\]",
        ),
        (
            "asymmetric",
            {**ASYMMETRIC, "key_bias": torch.randn(2, 32)},
            {},
            r"key_bias\.shape: expected \[2, 64\]",
        ),
        ("hashattention", LINEAR, {}, "layers of the key MLPs: expected 1 to 3, found 0"),
        (
            "hashattention",
            {**MLP, "key.1.weight": torch.randn(6, 47, 40)},
            {},
            r"key\.1\.weight\.shape: expected \[6, 48, any\]",
        ),
        (
            "hashattention",
            {name: tensor for name, tensor in MLP.items() if name != "query.2.bias"},
            {},
            r"tensors: expected .*query\.2\.bias",
        ),
        (
            "hashattention",
            {**MLP, "query.2.weight": torch.randn(6, 40, 64)},
            {},
            r"query\.2\.weight\.shape: expected \[6, 40, 32\]",
        ),
    ],
)
def test_wrong_weights_are_named(method, tensors, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        cases.ENCODERS[method].from_tensors(tensors, **SHAPE, **options)


K, Q = torch.randn(4, 2, 64), torch.randn(4, 6, 64)
CODES, SLOTS = torch.zeros(8, 2, 2, dtype=torch.int32), torch.arange(4)
SCALES = torch.zeros(8, 2, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("scale_bits", "changed", "message"),
    [
        (0, {"k": Q}, r"k\.shape: expected \[any, 2, 64\], found \[4, 6, 64\]"),
        (0, {"codes": CODES[:, :, :1].contiguous()}, r"codes\.shape: expected \[any, 2, 2\]"),
        (0, {"slots": SLOTS[:3]}, r"slots\.shape: expected \[4\], found \[3\]"),
        (0, {"slots": torch.arange(8)[::2]}, "slots strides: expected a contiguous tensor"),
        (0, {"scales": SCALES}, "scales: expected None, because scale_bits is 0"),
        (8, {}, r"scales: expected torch\.uint8 \[S, Hkv\], found None"),
        (16, {"scales": SCALES}, r"scales\.dtype: expected torch\.int16, found torch\.uint8"),
        (8, {"scales": SCALES[:7]}, r"scales\.shape: expected \[8, 2\], found \[7, 2\]"),
    ],
    ids=["k", "codes", "slots", "strided-slots", "needless", "none", "dtype", "shape"],
)
def test_wrong_keys_are_named(scale_bits, changed, message) -> None:
    tensors = {**LINEAR, **(STEP if scale_bits else {})}
    encoder = LinearEncoder.from_tensors(tensors, scale_bits=scale_bits, **SHAPE)
    arguments = {"k": K, "codes": CODES, "slots": SLOTS, **changed}
    with pytest.raises(ValueError, match=message):
        encoder.encode_keys(**arguments)
    with pytest.raises(ValueError, match=r"q\.shape: expected \[any, 6, 64\]"):
        encoder.encode_queries(K)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"q": Q.half()}, r"q\.dtype: expected torch\.float32, found torch\.float16"),
        ({"q": Q.int()}, r"q\.dtype: expected .*found torch\.int32"),
        ({"q": Q[:3]}, r"q\.shape\[0\]: expected 4, found 3"),
        ({"q": K}, r"q\.shape: expected \[any, 6, 64\]"),
        ({"k": Q}, r"k\.shape: expected \[any, 2, 64\]"),
        ({"slots": torch.randn(4)}, r"slots\.dtype: expected torch\.int32 or torch\.int64"),
        ({"codes": CODES.long()}, r"codes\.dtype: expected torch\.int32"),
        ({"codes": CODES.to("meta")}, r"codes\.device: expected cpu, found meta"),
        ({"tally": torch.zeros(4)}, r"tally\.dtype: expected torch\.int64"),
    ],
)
def test_wrong_steps_are_named(changed, message) -> None:
    encoder = LinearEncoder.from_tensors(LINEAR, **SHAPE)
    with pytest.raises(ValueError, match=message):
        encoder.encode_step(**{"q": Q, "k": K, "codes": CODES, "slots": SLOTS, **changed})


def test_mlp_needs_one_layer_count_on_both_sides() -> None:
    tensors = {
        **cases.make_tensors("hashattention", 2, 3, 64, 96, hidden=(40,)),
        "key.2.bias": MLP["key.2.bias"],
    }
    with pytest.raises(ValueError, match="tensors: expected"):
        MlpEncoder.from_tensors(tensors, **SHAPE)
