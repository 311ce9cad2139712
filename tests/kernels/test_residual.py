"""Keys in two stages: whole numbers, for which every product is exact, against plain loops; the
Triton encoder against the CPU one.
"""

from __future__ import annotations

import pytest
import torch

from encoder_cases import mostly
from hata_kernels.bits import unpack_bits
from hata_kernels.encode import encode_residual_naive
from hata_kernels.encode.triton_residual import encode_residual_triton
from hata_kernels.encoders import AsymmetricEncoder


def whole(*shape: int, most: int = 2) -> torch.Tensor:
    """Whole numbers up to ``most``: exact in half precision, and their sums in float32."""
    return torch.randint(-most, most + 1, shape).float()


def make(kv_heads: int, dim: int, bits: int, **options) -> AsymmetricEncoder:
    """Projections of whole numbers: many first-stage ones are exactly zero."""
    tensors = {
        "key_weight": whole(kv_heads, dim, bits, most=1) * (torch.rand(kv_heads, dim, bits) < 0.2),
        "key_bias": whole(kv_heads, bits),
        "query_weight": torch.randn(kv_heads, dim, bits),
        "query_bias": torch.randn(kv_heads, bits),
        "residual_weight": whole(kv_heads, bits // 2, bits // 2),
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
    ("kv_heads", "dim", "bits"), [(2, 20, 32), (1, 64, 64), (2, 33, 96), (1, 64, 160), (1, 64, 256)]
)
def test_whole_numbers_are_exact(device, poison, dtype, kv_heads, dim, bits) -> None:
    encoder = make(kv_heads, dim, bits, scale_bits=16)
    tokens = 19
    k = whole(tokens, kv_heads, dim)
    expected = [
        [code_of(encoder, k[t, h].tolist(), h) for h in range(kv_heads)] for t in range(tokens)
    ]
    expected_bits = torch.tensor([[bits for bits, _ in row] for row in expected])
    sizes = torch.tensor([[size for _, size in row] for row in expected])
    assert torch.equal(encoder.key_bits(k), expected_bits)
    assert (encoder.key_scales(k) - 64 * sizes).abs().max() <= 0.5 + 1e-3

    there = encoder.to(device, dtype)
    codes = poison(40, kv_heads, bits // 32, dtype=torch.int32, device=device)
    scales = torch.full((40, kv_heads), 77, dtype=torch.int16, device=device)
    slots = torch.randperm(40)[:tokens]
    keys = k.to(device, dtype)
    there._launch_keys(keys, codes, slots.to(device), scales)
    assert torch.equal(unpack_bits(codes.cpu()[slots]), expected_bits)
    assert (scales.cpu()[slots] - 64 * sizes).abs().max() <= 0.5 + 1e-3
    rest = torch.ones(40, dtype=torch.bool)
    rest[slots] = False
    assert codes.cpu()[rest].eq(-987654321).all()
    assert scales.cpu()[rest].eq(77).all()


# tokens, KV heads, head size, bits
SHAPES = [
    pytest.param(1, 3, 64, 128, id="T1-H3-D64-r128"),
    pytest.param(63, 2, 33, 96, id="T63-H2-D33-r96"),
    pytest.param(70, 1, 80, 32, id="T70-H1-D80-r32"),
    pytest.param(17, 2, 128, 256, id="T17-H2-D128-r256"),
]


def check_against_the_reference(poison, device, dtype, make_numbers, tokens, kv_heads, dim, bits):
    """Codes and scales of `encode_residual_triton` are those of `encode_residual_naive`.

    All of them for whole numbers, many of whose projections are exactly zero; else but for bits
    within rounding of zero, and scales within one step.
    """
    half = bits // 2
    fused = make_numbers(tokens, 3 * kv_heads * dim).to(dtype)
    k = fused[:, kv_heads * dim : 2 * kv_heads * dim].unflatten(1, (kv_heads, dim))
    k[1:2] = 0  # its projections are the biases
    weight = make_numbers(kv_heads, dim, bits) * (torch.rand(kv_heads, dim, bits) < 0.2)
    weights = [
        weight.to(dtype),
        make_numbers(kv_heads, bits),
        make_numbers(kv_heads, half, half).to(dtype),
    ]
    weights[1][:, ::5] = 0
    step = torch.full((kv_heads,), 2.0**-4)
    slots = torch.randperm(100)[:tokens].int()

    def run(implementation, where):
        codes = poison(100, kv_heads, bits // 32, dtype=torch.int32, device=where)
        scales = torch.full((100, kv_heads), 77, dtype=torch.uint8, device=where)
        tensors = (tensor.to(where) for tensor in (k, *weights))
        filled = {"slots": slots.to(where), "scales": scales, "scale_step": step.to(where)}
        assert implementation(*tensors, out=codes, **filled) is codes
        return codes.cpu(), scales.cpu()

    codes, scales = run(encode_residual_triton, device)
    expected_codes, expected_scales = run(encode_residual_naive, "cpu")
    rest = torch.ones(100, dtype=torch.bool)
    rest[slots.long()] = False
    assert codes[rest].eq(-987654321).all()
    assert expected_codes[rest].eq(-987654321).all()
    assert scales[rest].eq(77).all()
    assert (scales.int() - expected_scales.int()).abs().max() <= 1
    if make_numbers is whole:
        assert torch.equal(codes, expected_codes)
        return
    x = torch.einsum("thn,hnr->thr", k.double(), weights[0].double()) + weights[1].double()
    first, second = x.chunk(2, dim=-1)
    signs = torch.where(first > 0, 1.0, -1.0).double()
    second = second + torch.einsum("thn,hnr->thr", signs, weights[2].double())
    # A first-stage sign within rounding of zero moves the whole second stage of its key.
    first_clear = (first.abs() > 1e-4) | (first == 0)
    second_clear = (second.abs() > 1e-4) & first_clear.all(dim=-1, keepdim=True)
    clear = torch.cat([first_clear, second_clear], dim=-1)
    assert mostly(clear, 0.9)
    differs = unpack_bits(codes[slots.long()]) != unpack_bits(expected_codes[slots.long()])
    assert not differs[clear].any()


@pytest.mark.parametrize("make_numbers", [whole, torch.randn], ids=["whole", "real"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("tokens", "kv_heads", "dim", "bits"), SHAPES)
def test_triton_is_the_reference(
    device, poison, dtype, make_numbers, tokens, kv_heads, dim, bits
) -> None:
    shape = (tokens, kv_heads, dim, bits)
    check_against_the_reference(poison, device, dtype, make_numbers, *shape)


@pytest.mark.gpu
@pytest.mark.parametrize("make_numbers", [whole, torch.randn], ids=["whole", "real"])
@pytest.mark.parametrize(("tokens", "kv_heads", "dim", "bits"), SHAPES)
def test_triton_is_the_reference_in_bfloat16(
    poison, make_numbers, tokens, kv_heads, dim, bits
) -> None:
    # On the GPU only: Triton's interpreter has no bfloat16.
    shape = (tokens, kv_heads, dim, bits)
    check_against_the_reference(poison, "cuda", torch.bfloat16, make_numbers, *shape)


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


def test_mixed_dtypes_are_computed_in_float32(device, poison) -> None:
    encoder = make(2, 32, 96)
    weights = encoder.to(device, torch.float32).tensors()
    k = whole(9, 2, 32)
    codes = poison(9, 2, 3, dtype=torch.int32, device=device)
    names = ("key_weight", "key_bias", "residual_weight")
    encode_residual_triton(
        k.to(device, torch.float16),
        *(weights[name] for name in names),
        out=codes,
        slots=torch.arange(9, dtype=torch.int32, device=device),
    )
    assert torch.equal(unpack_bits(codes.cpu()), encoder.key_bits(k))


def test_no_keys_and_wrong_arguments(device, poison) -> None:
    codes = poison(5, 2, 2, dtype=torch.int32, device=device)
    here = {"device": device}
    good = {
        "k": torch.randn(4, 2, 16, **here),
        "weight": torch.randn(2, 16, 64, **here),
        "bias": torch.randn(2, 64, **here),
        "residual_weight": torch.randn(2, 32, 32, **here),
        "out": codes,
        "slots": torch.arange(4, **here),
    }
    bytes_ = torch.zeros(5, 2, dtype=torch.uint8, **here)
    wide = {
        "weight": torch.randn(2, 16, 1056, **here),
        "bias": torch.randn(2, 1056, **here),
        "residual_weight": torch.randn(2, 528, 528, **here),
        "out": torch.zeros(5, 2, 33, dtype=torch.int32, **here),
    }
    own = [
        ({"k": torch.randn(4, 2, 32, **here)[..., ::2]}, r"k\.stride\(2\): expected 1, found 2"),
        (wide, r"weight\.shape\[2\]: expected at most 1024, found 1056"),
    ]
    for changed, message in own:
        with pytest.raises(ValueError, match=message):
            encode_residual_triton(**{**good, **changed})
    shared = [
        ({"k": torch.randn(4, 4, 16, **here), "out": codes.repeat(1, 2, 1)}, "k: expected keys"),
        ({"residual_weight": torch.randn(2, 64, 64, **here)}, r"residual_weight\.shape"),
        ({"residual_weight": good["residual_weight"].half()}, r"residual_weight\.dtype"),
        ({"bias": torch.randn(2, 32, **here)}, r"bias\.shape: expected \[2, 64\]"),
        ({"slots": torch.arange(3, **here)}, r"slots\.shape: expected \[4\], found \[3\]"),
        ({"scales": bytes_}, "scale_step: expected a tensor, because scales is given"),
        ({"scales": bytes_[:4], "scale_step": torch.ones(2, **here)}, r"scales\.shape"),
    ]
    none = {"k": good["k"][:0], "slots": good["slots"][:0]}
    for implementation in (encode_residual_naive, encode_residual_triton):
        for changed, message in shared:
            with pytest.raises(ValueError, match=message):
                implementation(**{**good, **changed})
        assert implementation(**{**good, **none}) is codes
        assert codes.eq(-987654321).all()
