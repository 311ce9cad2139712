"""Encoders: definitions in float64, packing, Triton launches, and the integers serving ranks by."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import silu

from hata_kernels.bits import pack_bits, unpack_bits
from hata_kernels.encode import encode_naive
from hata_kernels.encoders import (
    ENCODERS,
    AsymmetricEncoder,
    Encoder,
    LinearEncoder,
    MlpEncoder,
    dense_scores,
    make_encoder,
)
from hata_kernels.score import score, score_dtype, score_levels

# Levels closer to the next one than this share of all levels may round to either.
CLOSE = 1e-5


def make_tensors(
    method, kv_heads, group, dim, bits, scale_bits=0, hidden=(48, 40), stages=1
) -> dict:
    """Random weights; ``hidden`` are the widths inside of the MLPs."""
    if method == "hashattention":
        sizes = (dim, *hidden, 32)
        heads = kv_heads * group
        tensors = {}
        for side in ("key", "query"):
            for n, (size, out) in enumerate(pairwise(sizes)):
                tensors[f"{side}.{n}.weight"] = 2 * torch.randn(heads, size, out) / size**0.5
                tensors[f"{side}.{n}.bias"] = torch.randn(heads, out)
        return tensors
    if method == "asymmetric":
        tensors = {
            "key_weight": torch.randn(kv_heads, dim, bits),
            "key_bias": dim**0.5 * torch.randn(kv_heads, bits),
            "query_weight": torch.randn(kv_heads, group * dim, bits),
            "query_bias": dim**0.5 * torch.randn(kv_heads, bits),
        }
        if stages == 2:
            half = bits // 2
            # Residuals are about as large as projections.
            tensors["residual_weight"] = (dim / half) ** 0.5 * torch.randn(kv_heads, half, half)
    else:
        tensors = {"weight": torch.randn(kv_heads, dim, bits)}
    if scale_bits:
        # About a tenth of the keys reach the largest scale.
        largest = 1.1 if method == "hata" else 1.2
        most = 2**scale_bits - 1
        tensors["scale_step"] = largest * dim**0.5 / most * (0.8 + 0.2 * torch.rand(kv_heads))
    return tensors


def make(method, kv_heads, group, dim, bits=64, *, hidden=(48, 40), **options) -> Encoder:
    size = {"scale_bits": options.get("scale_bits", 0), "stages": options.get("stages", 1)}
    tensors = make_tensors(method, kv_heads, group, dim, bits, hidden=hidden, **size)
    shape = {"num_kv_heads": kv_heads, "group": group, "head_dim": dim}
    return make_encoder(method, tensors, **shape, **options)


def make_buffers(encoder: Encoder, slots: int, poison, device="cpu"):
    """Poisoned codes and scales."""
    codes = poison(slots, encoder.num_kv_heads, encoder.words, dtype=torch.int32, device=device)
    if encoder.scale_bits == 0:
        return codes, None
    shape = (slots, encoder.num_kv_heads)
    return codes, torch.full(shape, 77, dtype=encoder.scale_dtype, device=device)


# method, KV heads, group, head size, bits, options
CASES = [
    pytest.param("hata", 3, 3, 64, 128, {}, id="hata-G3-D64-r128"),
    pytest.param("random", 1, 1, 96, 32, {}, id="random-G1-D96-r32"),
    pytest.param("hata", 2, 4, 128, 256, {"scale_bits": 8}, id="hata-scale8-r256"),
    pytest.param("hata", 2, 1, 80, 96, {"scale_bits": 16}, id="hata-scale16-D80-r96"),
    pytest.param("asymmetric", 3, 3, 64, 128, {}, id="asymmetric-B4-r128"),
    pytest.param("asymmetric", 1, 7, 80, 96, {"query_bits": 1}, id="asymmetric-B1-G7-D80-r96"),
    pytest.param(
        "asymmetric", 2, 2, 64, 256, {"query_bits": 8, "scale_bits": 16}, id="asymmetric-B8-scale16"
    ),
    pytest.param(
        "asymmetric", 2, 1, 96, 32, {"query_bits": 3, "scale_bits": 8, "clip": 1.7},
        id="asymmetric-B3-scale8-clip",
    ),
    pytest.param("asymmetric", 3, 3, 64, 128, {"stages": 2}, id="residual-B4-r128"),
    pytest.param(
        "asymmetric", 1, 7, 80, 96, {"query_bits": 5, "stages": 2}, id="residual-B5-D80-r96"
    ),
    pytest.param(
        "asymmetric", 2, 2, 64, 256, {"query_bits": 8, "scale_bits": 16, "stages": 2},
        id="residual-B8-scale16-r256",
    ),
    pytest.param(
        "asymmetric", 2, 1, 96, 32, {"query_bits": 3, "scale_bits": 8, "stages": 2},
        id="residual-B3-scale8-r32",
    ),
    pytest.param("hashattention", 3, 3, 64, 96, {}, id="mlp-3-layers-G3"),
    pytest.param("hashattention", 2, 1, 96, 32, {"hidden": (40,)}, id="mlp-2-layers-G1-D96"),
    pytest.param("hashattention", 2, 4, 64, 128, {"hidden": ()}, id="mlp-1-layer-G4"),
]  # fmt: skip
ALL = pytest.mark.parametrize(("method", "kv_heads", "group", "dim", "bits", "options"), CASES)


def outputs(x: torch.Tensor, tensors: dict, side: str) -> torch.Tensor:
    """Outputs of one query head's MLP in float64, for x [T, D] and the head's own tensors."""
    layers = sum(name.startswith(side) for name in tensors) // 2
    for n in range(layers):
        x = silu(x) if n else x
        x = x @ tensors[f"{side}.{n}.weight"] + tensors[f"{side}.{n}.bias"]
    return x


def key_numbers(encoder: Encoder, k: torch.Tensor) -> torch.Tensor:
    """What the key bits are the signs of, ``[T, Hkv, r]`` in float64, head by head."""
    tensors = {name: tensor.double() for name, tensor in encoder.tensors().items()}
    heads = []
    for h in range(encoder.num_kv_heads):
        x = k[:, h].double()
        if encoder.method == "hata":
            heads.append(x @ tensors["weight"][h])
        elif encoder.method == "asymmetric":
            numbers = x @ tensors["key_weight"][h] + tensors["key_bias"][h]
            if encoder.stages == 2:
                signs = torch.where(numbers[:, : encoder.bits // 2] > 0, 1.0, -1.0).double()
                numbers[:, encoder.bits // 2 :] += signs @ tensors["residual_weight"][h]
            heads.append(numbers)
        else:
            members = range(h * encoder.group, (h + 1) * encoder.group)
            own = [{name: tensor[g] for name, tensor in tensors.items()} for g in members]
            heads.append(torch.cat([outputs(x, head, "key") for head in own], dim=1))
    return torch.stack(heads, dim=1)


def query_numbers(encoder: Encoder, q: torch.Tensor) -> torch.Tensor:
    """What decides the query planes: signs of them for symmetric codes, else levels of them.

    float64 ``[T, Hkv, P, r]``; for asymmetric queries ``[T, Hkv, 1, r]``, in steps.
    """
    tensors = {name: tensor.double() for name, tensor in encoder.tensors().items()}
    group = encoder.group
    heads = []
    for h in range(encoder.num_kv_heads):
        members = [q[:, h * group + g].double() for g in range(group)]
        if encoder.method == "hata":
            heads.append(torch.stack([x @ tensors["weight"][h] for x in members], dim=1))
        elif encoder.method == "asymmetric":
            u = torch.cat(members, dim=1) @ tensors["query_weight"][h] + tensors["query_bias"][h]
            step = encoder.clip * (u**2).mean(dim=1, keepdim=True).sqrt()
            heads.append((u / step * 2 ** (encoder.query_bits - 1)).unsqueeze(1))
        else:
            own = [
                {name: tensor[h * group + g] for name, tensor in tensors.items()}
                for g in range(group)
            ]
            words = [outputs(x, head, "query") for x, head in zip(members, own, strict=True)]
            heads.append(torch.cat(words, dim=1).unsqueeze(1))
    return torch.stack(heads, dim=1)


def is_clear(numbers: torch.Tensor) -> torch.Tensor:
    """Whether a sign survives rounding; that of an exact zero, from a zero key, does."""
    return (numbers.abs() > 1e-4 * numbers.abs().mean()) | (numbers == 0)


def assert_key_bits(bits: torch.Tensor, encoder: Encoder, k: torch.Tensor) -> None:
    numbers = key_numbers(encoder, k)
    clear = is_clear(numbers)
    assert clear.double().mean() > 0.99
    if encoder.options().get("stages") == 2:
        first, second = clear.chunk(2, dim=-1)
        # A first-stage sign within rounding of zero moves the whole second stage of its key.
        clear = torch.cat([first, second & first.all(dim=-1, keepdim=True)], dim=-1)
        assert clear.double().mean() > 0.9
    assert torch.equal(bits[clear], (numbers > 0)[clear])


def assert_query_bits(planes: torch.Tensor, encoder: Encoder, q: torch.Tensor) -> None:
    numbers = query_numbers(encoder, q)
    if encoder.method != "asymmetric":
        clear = is_clear(numbers)
        assert clear.double().mean() > 0.99
        assert torch.equal(planes[clear], (numbers > 0)[clear])
        return
    half = 2 ** (encoder.query_bits - 1)
    weights = 2 ** torch.arange(encoder.query_bits).view(-1, 1)
    levels = (planes * weights).sum(dim=2) - half
    numbers = numbers.squeeze(2)
    clear = (numbers - numbers.round()).abs() > CLOSE * half * 2
    assert clear.double().mean() > 0.97
    assert torch.equal(levels[clear].double(), numbers.floor().clamp(-half, half - 1)[clear])
    assert bool((levels - numbers.floor().clamp(-half, half - 1)).abs().le(1).all())


def assert_scales(scales: torch.Tensor, encoder: Encoder, k: torch.Tensor) -> None:
    """Stored scales, as unsigned integers, are the rounded real ones."""
    if encoder.method == "hata":
        real = k.double().norm(dim=-1)
    else:
        first_stage = encoder.bits // encoder.stages
        real = key_numbers(encoder, k)[..., :first_stage].abs().mean(dim=-1)
    most = 2**encoder.scale_bits - 1
    steps = (real / encoder.tensors()["scale_step"].double()).clamp(max=most)
    error = ((scales.long() & most) - steps).abs()
    # Half a step, and the rounding of float32 at 16 bits.
    assert bool((error <= 0.5 + 2e-6 * steps + 1e-9).all())


@ALL
def test_bits_are_those_of_the_definition(method, kv_heads, group, dim, bits, options) -> None:
    encoder = make(method, kv_heads, group, dim, bits, **options)
    assert encoder.bits == bits
    k, q = torch.randn(31, kv_heads, dim), torch.randn(13, kv_heads * group, dim)
    k *= 0.1 + torch.rand(31, kv_heads, 1)
    assert_key_bits(encoder.key_bits(k), encoder, k)
    assert_query_bits(encoder.query_bits_of(q), encoder, q)
    scales = encoder.key_scales(k)
    if encoder.scale_bits:
        assert scales.dtype == torch.int32
        assert 0 <= scales.min() <= scales.max() < 2**encoder.scale_bits
        assert len(scales.unique()) > 10
        assert_scales(scales, encoder, k)
    else:
        assert scales is None


@ALL
def test_codes_are_the_packed_bits(poison, method, kv_heads, group, dim, bits, options) -> None:
    encoder = make(method, kv_heads, group, dim, bits, **options)
    k, q = torch.randn(9, kv_heads, dim), torch.randn(5, kv_heads * group, dim)
    codes, scales = make_buffers(encoder, 20, poison)
    slots = torch.randperm(20)[:9].int()
    encoder.encode_keys(k, codes=codes, slots=slots, scales=scales)
    assert torch.equal(codes[slots.long()], pack_bits(encoder.key_bits(k)))
    rest = torch.ones(20, dtype=torch.bool)
    rest[slots.long()] = False
    assert codes[rest].eq(-987654321).all()
    if scales is not None:
        stored = scales[slots.long()].int() & (2**encoder.scale_bits - 1)
        assert torch.equal(stored, encoder.key_scales(k))
        assert scales[rest].eq(77).all()
    planes = len(encoder.plane_weights)
    q_codes = encoder.encode_queries(q)
    assert q_codes.shape == (5, kv_heads * planes, encoder.words)
    assert q_codes.is_contiguous()
    packed = pack_bits(encoder.query_bits_of(q))
    for h in range(kv_heads):
        for p in range(planes):
            assert torch.equal(q_codes[:, h * planes + p], packed[:, h, p])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@ALL
def test_triton_makes_the_same_codes(
    device, poison, dtype, method, kv_heads, group, dim, bits, options
) -> None:
    encoder = make(method, kv_heads, group, dim, bits, **options)
    tokens = 70  # more than a block, and no multiple of one
    # Slices of a fused projection. Half precision is rounded before, so that both see the same.
    fused = torch.randn(tokens, (group + 1) * kv_heads * dim).to(dtype)
    q = fused[:, : group * kv_heads * dim].unflatten(1, (-1, dim))
    k = fused[:, group * kv_heads * dim :].unflatten(1, (-1, dim))
    k[3], q[3] = 0, 0
    there = encoder.to(device, dtype)
    rounded = there.to("cpu", torch.float32)
    codes, scales = make_buffers(encoder, 100, poison, device)
    slots = torch.randperm(99)[:tokens] + 1
    there._launch_keys(k.to(device), codes, slots.to(device), scales)
    found = unpack_bits(codes.cpu()[slots])
    q_found = unpack_bits(there._launch_queries(q.to(device)).cpu())
    q_found = q_found.unflatten(1, (kv_heads, -1))
    if method == "hashattention" and dtype == torch.float16 and options.get("hidden") != ():
        # Hidden layers are rounded to half precision: bits near the threshold change.
        assert (found != rounded.key_bits(k)).float().mean() < 0.01
        assert (q_found != rounded.query_bits_of(q)).float().mean() < 0.01
    else:
        assert_key_bits(found, rounded, k)
        keep = torch.arange(tokens) != 3 if encoder.method == "asymmetric" else slice(None)
        assert_query_bits(q_found[keep], rounded, q[keep])
    untouched = torch.ones(100, dtype=torch.bool)
    untouched[slots] = False
    assert codes.cpu()[untouched].eq(-987654321).all()
    if scales is not None:
        assert_scales(scales.cpu()[slots], rounded, k)
        assert scales.cpu()[untouched].eq(77).all()


def test_a_query_without_length_has_the_levels_around_zero(device) -> None:
    encoder = make("asymmetric", 2, 3, 64, 96, query_bits=3)
    tensors = encoder.tensors()
    tensors["query_bias"] = torch.zeros(2, 96)
    shape = {"num_kv_heads": 2, "group": 3, "head_dim": 64}
    encoder = AsymmetricEncoder.from_tensors(tensors, query_bits=3, **shape)
    q = torch.zeros(4, 6, 64)
    assert encoder.query_levels(q).eq(0).all()
    expected = encoder.encode_queries(q)
    assert torch.equal(encoder.to(device, q.dtype)._launch_queries(q.to(device)).cpu(), expected)


@pytest.mark.gpu
@ALL
def test_triton_bfloat16(poison, method, kv_heads, group, dim, bits, options) -> None:
    # On the GPU only: Triton's interpreter has no bfloat16.
    encoder = make(method, kv_heads, group, dim, bits, **options).to("cuda", torch.bfloat16)
    rounded = encoder.to("cpu", torch.float32)
    k = torch.randn(70, kv_heads, dim).bfloat16()
    q = torch.randn(70, kv_heads * group, dim).bfloat16()
    codes, scales = make_buffers(encoder, 100, poison, "cuda")
    slots = torch.randperm(100)[:70]
    encoder.encode_keys(k.cuda(), codes=codes, slots=slots.cuda(), scales=scales)
    found = unpack_bits(codes.cpu()[slots])
    q_found = unpack_bits(encoder.encode_queries(q.cuda()).cpu()).unflatten(1, (kv_heads, -1))
    if method == "hashattention" and options.get("hidden") != ():
        assert (found != rounded.key_bits(k)).float().mean() < 0.03
        assert (q_found != rounded.query_bits_of(q)).float().mean() < 0.03
    else:
        assert_key_bits(found, rounded, k)
        assert_query_bits(q_found, rounded, q)
    if scales is not None:
        assert_scales(scales.cpu()[slots], rounded, k)


def check_dense_is_what_serving_ranks_by(encoder: Encoder, tokens: int, keys: int) -> None:
    heads, dim = encoder.num_kv_heads, encoder.head_dim
    q, k = torch.randn(tokens, heads * encoder.group, dim), torch.randn(keys, heads, dim)
    k *= torch.rand(keys, heads, 1) * 2
    codes = torch.zeros(keys, heads, encoder.words, dtype=torch.int32)
    scales = None
    if encoder.scale_bits:
        scales = torch.zeros(keys, heads, dtype=encoder.scale_dtype)
    encoder.encode_keys(k, codes=codes, slots=torch.arange(keys), scales=scales)
    kind = (encoder.plane_weights, encoder.bits, encoder.scale_bits)
    out = torch.full((tokens, heads, keys), float("nan"), dtype=score_dtype(*kind))
    score(
        encoder.encode_queries(q),
        codes,
        torch.arange(keys, dtype=torch.int32).repeat(tokens, 1),
        torch.full((tokens,), keys),
        plane_weights=encoder.plane_weights,
        sink=0,
        recent=0,
        out=out,
        scales=scales,
        scale_bits=encoder.scale_bits,
    )
    dense = dense_scores(encoder, q, k)
    assert dense.dtype == torch.float32
    assert dense.shape == (heads, tokens, keys)
    assert torch.equal(dense, out.float().transpose(0, 1))
    assert 0 <= dense.min() <= dense.max() <= score_levels(*kind) - 2
    if encoder.method == "asymmetric" and encoder.scale_bits == 0:
        levels = 2 * encoder.query_levels(q).double() + 1
        signs = torch.where(encoder.key_bits(k), 1.0, -1.0).double()
        full = encoder.bits * (2**encoder.query_bits - 1)
        expected = (full + torch.einsum("nhr,shr->hns", levels, signs)) / 2
        assert torch.equal(dense.double(), expected)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 5), st.sampled_from([16, 63, 64]), st.integers(1, 8),
    st.integers(1, 8), st.sampled_from([0, 8, 16]), st.sampled_from([0.5, 2.5, 9.0]),
    st.integers(1, 2), st.integers(1, 9), st.integers(1, 60),
)  # fmt: skip
def test_dense_scores_asymmetric(
    kv_heads, group, dim, words, query_bits, scale_bits, clip, stages, n, s
) -> None:
    options = {"query_bits": query_bits, "scale_bits": scale_bits, "clip": clip, "stages": stages}
    encoder = make("asymmetric", kv_heads, group, dim, 32 * words, **options)
    check_dense_is_what_serving_ranks_by(encoder, n, s)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 9), st.integers(1, 8), st.sampled_from([0, 8, 16]),
    st.integers(1, 9), st.integers(1, 60),
)  # fmt: skip
def test_dense_scores_hata(kv_heads, group, words, scale_bits, n, s) -> None:
    encoder = make("hata", kv_heads, group, 64, 32 * words, scale_bits=scale_bits)
    check_dense_is_what_serving_ranks_by(encoder, n, s)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 5), st.lists(st.integers(1, 50), max_size=2),
    st.integers(1, 9), st.integers(1, 60),
)  # fmt: skip
def test_dense_scores_hashattention(kv_heads, group, hidden, n, s) -> None:
    encoder = make("hashattention", kv_heads, group, 64, hidden=tuple(hidden))
    assert encoder.bits == 32 * group
    check_dense_is_what_serving_ranks_by(encoder, n, s)


def test_linear_codes_are_those_of_encode() -> None:
    encoder = make("hata", 3, 3, 64, 128)
    q = torch.randn(50, 9, 64).bfloat16()
    assert torch.equal(encoder.encode_queries(q), encode_naive(q, encoder.tensors()["weight"]))


@ALL
def test_stored_and_made_again(method, kv_heads, group, dim, bits, options) -> None:
    encoder = make(method, kv_heads, group, dim, bits, **options)
    assert type(encoder) is ENCODERS[method]
    shape = {"num_kv_heads": kv_heads, "group": group, "head_dim": dim}
    again = make_encoder(method, encoder.tensors(), **shape, **encoder.options())
    half = encoder.to("cpu", torch.bfloat16)
    k, q = torch.randn(6, kv_heads, dim), torch.randn(6, kv_heads * group, dim)
    assert torch.equal(again.key_bits(k), encoder.key_bits(k))
    assert torch.equal(again.query_bits_of(q), encoder.query_bits_of(q))
    assert again.code_bytes == bits // 8 + encoder.scale_bits // 8
    assert again.words == bits // 32
    assert set(options) - {"hidden"} <= set(encoder.options())
    assert again.options() == encoder.options() == half.options()
    for name, tensor in half.tensors().items():
        assert tensor.dtype == torch.float32
        stored = encoder.tensors()[name]
        kept = stored.bfloat16().float() if name.endswith("weight") else stored
        assert torch.equal(tensor, kept)


SHAPE = {"num_kv_heads": 2, "group": 3, "head_dim": 64}
LINEAR = {"weight": torch.randn(2, 64, 64)}
STEP = {"scale_step": torch.ones(2)}
ASYMMETRIC = make_tensors("asymmetric", 2, 3, 64, 64)
MLP = make_tensors("hashattention", 2, 3, 64, 96)


@pytest.mark.parametrize(
    ("method", "tensors", "options", "message"),
    [
        ("streaming", LINEAR, {}, "method: expected hata or random .*, found streaming"),
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
        make_encoder(method, tensors, **SHAPE, **options)


K, Q = torch.randn(4, 2, 64), torch.randn(4, 6, 64)
CODES, SLOTS = torch.zeros(8, 2, 2, dtype=torch.int32), torch.arange(4)
SCALES = torch.zeros(8, 2, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("scale_bits", "changed", "message"),
    [
        (0, {"k": Q}, r"k\.shape: expected \[any, 2, 64\], found \[4, 6, 64\]"),
        (0, {"codes": CODES[:, :, :1].contiguous()}, r"codes\.shape: expected \[any, 2, 2\]"),
        (0, {"slots": SLOTS[:3]}, r"slots\.shape: expected \[4\], found \[3\]"),
        (0, {"scales": SCALES}, "scales: expected None, because scale_bits is 0"),
        (8, {}, r"scales: expected torch\.uint8 \[S, Hkv\], found None"),
        (16, {"scales": SCALES}, r"scales\.dtype: expected torch\.int16, found torch\.uint8"),
        (8, {"scales": SCALES[:7]}, r"scales\.shape: expected \[8, 2\], found \[7, 2\]"),
    ],
    ids=["k", "codes", "slots", "needless", "none", "dtype", "shape"],
)
def test_wrong_keys_are_named(scale_bits, changed, message) -> None:
    tensors = {**LINEAR, **(STEP if scale_bits else {})}
    encoder = LinearEncoder.from_tensors(tensors, scale_bits=scale_bits, **SHAPE)
    arguments = {"k": K, "codes": CODES, "slots": SLOTS, **changed}
    with pytest.raises(ValueError, match=message):
        encoder.encode_keys(**arguments)
    with pytest.raises(ValueError, match=r"q\.shape: expected \[any, 6, 64\]"):
        encoder.encode_queries(K)


@pytest.mark.parametrize("method", ENCODERS)
def test_no_tokens(method) -> None:
    encoder = make(method, 2, 3, 64)
    codes = torch.full((5, 2, encoder.words), 3, dtype=torch.int32)
    encoder.encode_keys(torch.empty(0, 2, 64), codes=codes, slots=torch.empty(0, dtype=torch.int64))
    assert codes.eq(3).all()
    shape = (0, 2 * len(encoder.plane_weights), encoder.words)
    assert encoder.encode_queries(torch.empty(0, 6, 64)).shape == shape


def test_mlp_needs_one_layer_count_on_both_sides() -> None:
    tensors = {
        **make_tensors("hashattention", 2, 3, 64, 96, hidden=(40,)),
        "key.2.bias": MLP["key.2.bias"],
    }
    with pytest.raises(ValueError, match="tensors: expected"):
        MlpEncoder.from_tensors(tensors, **SHAPE)
