"""Keys in two stages: whole numbers, for which every product is exact, against plain loops."""

from __future__ import annotations

import pytest
import torch

from encoder_cases import unpack_bits, whole
from hata_kernels.encoders import AsymmetricEncoder


def make(kv_heads: int, dim: int, bits: int, **options) -> AsymmetricEncoder:
    """Projections of whole numbers: many first-stage ones are exactly zero."""
    tensors = {
        "key_weight": whole(kv_heads, dim, bits) * (torch.rand(kv_heads, dim, bits) < 0.2),
        "key_bias": whole(kv_heads, bits, most=2),
        "query_weight": torch.randn(kv_heads, dim, bits),
        "query_bias": torch.randn(kv_heads, bits),
        "residual_weight": whole(kv_heads, bits // 2, bits // 2, most=2),
    }
    if options.get("scale_bits"):
        tensors["scale_step"] = torch.full((kv_heads,), 2.0**-6)
    shape = {"num_kv_heads": kv_heads, "group": 1, "head_dim": dim}
    return AsymmetricEncoder(tensors, **shape, stages=2, **options)


def code_of(encoder: AsymmetricEncoder, key: list[float], head: int) -> tuple[list[bool], float]:
    """Bits of one key, and the mean size of its first stage, bit by bit."""
    tensors = {name: tensor[head].tolist() for name, tensor in encoder.tensors().items()}
    half = encoder.bits // 2
    numbers = [
        sum(x * row[j] for x, row in zip(key, tensors["key_weight"], strict=True)) + bias
        for j, bias in enumerate(tensors["key_bias"])
    ]
    signs = [1 if number > 0 else -1 for number in numbers[:half]]
    for j in range(half):
        for sign, row in zip(signs, tensors["residual_weight"], strict=True):
            numbers[half + j] += sign * row[j]
    return [number > 0 for number in numbers], sum(map(abs, numbers[:half])) / half


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("tokens", "kv_heads", "dim", "bits"),
    [
        *[(19, 2, 20, 32), (19, 1, 64, 64), (63, 2, 33, 96), (19, 1, 64, 160), (17, 1, 64, 256)],
        *[(1, 3, 64, 128), (70, 1, 80, 32)],
    ],
)
def test_whole_numbers_are_exact(device, poison, dtype, tokens, kv_heads, dim, bits) -> None:
    encoder = make(kv_heads, dim, bits, scale_bits=16)
    k = whole(tokens, kv_heads, dim, most=2)
    k[1:2] = 0  # its projections are the biases
    expected = [
        [code_of(encoder, k[t, h].tolist(), h) for h in range(kv_heads)] for t in range(tokens)
    ]
    expected_bits = torch.tensor([[bits for bits, _ in row] for row in expected])
    sizes = torch.tensor([[size for _, size in row] for row in expected])
    assert torch.equal(encoder.key_bits(k), expected_bits)
    assert (encoder.key_scales(k) - 64 * sizes).abs().max() <= 0.5 + 1e-3

    there = encoder.to(device, dtype)
    codes = poison(99, kv_heads, bits // 32, dtype=torch.int32, device=device)
    scales = torch.full((99, kv_heads), 77, dtype=torch.int16, device=device)
    slots = torch.randperm(99)[:tokens]
    keys = k.to(device, dtype)
    there._launch_keys(keys, codes, slots.to(device), scales)
    assert torch.equal(unpack_bits(codes.cpu()[slots]), expected_bits)
    assert (scales.cpu()[slots] - 64 * sizes).abs().max() <= 0.5 + 1e-3
    rest = torch.ones(99, dtype=torch.bool)
    rest[slots] = False
    assert codes.cpu()[rest].eq(-987654321).all()
    assert scales.cpu()[rest].eq(77).all()


def test_what_the_first_stage_left_over_decides_the_second() -> None:
    tensors = make(2, 16, 64).tensors()
    tensors["key_weight"] = tensors["key_weight"].repeat(1, 1, 2)[:, :, :64]
    shape = {"num_kv_heads": 2, "group": 1, "head_dim": 16}
    k = torch.randn(50, 2, 16)
    residual = tensors.pop("residual_weight")
    one = AsymmetricEncoder(tensors, **shape).key_bits(k)
    none = AsymmetricEncoder({**tensors, "residual_weight": 0 * residual}, stages=2, **shape)
    assert torch.equal(none.key_bits(k), one)
    # Far beyond every projection: second-stage bits are first-stage bits, turned round.
    turned = -1e4 * torch.eye(32).repeat(2, 1, 1)
    found = AsymmetricEncoder({**tensors, "residual_weight": turned}, stages=2, **shape).key_bits(k)
    assert torch.equal(found[..., :32], one[..., :32])
    assert torch.equal(found[..., 32:], ~one[..., :32])


def test_no_keys_and_wrong_arguments(device, poison) -> None:
    def run(k, bits=64):
        codes = poison(5, 2, bits // 32, dtype=torch.int32, device=device)
        slots = torch.arange(len(k), device=device)
        make(2, 16, bits).to(device, torch.float32)._launch_keys(k, codes, slots, None)
        return codes

    k = torch.randn(4, 2, 32, device=device)
    assert run(k[:0, :, :16]).eq(-987654321).all()
    with pytest.raises(ValueError, match=r"k\.stride\(2\): expected 1, found 2"):
        run(k[..., ::2])
    with pytest.raises(
        ValueError, match=r"k\.dtype: expected torch\.float32, found torch\.float16"
    ):
        run(k[..., :16].half())
    with pytest.raises(ValueError, match="bits: expected at most 1024, found 1056"):
        run(k[..., :16], 1056)
