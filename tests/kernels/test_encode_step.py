"""A decode step's keys and queries in one launch: the Triton encoders against the CPU ones."""

from __future__ import annotations

import pytest
import torch

import encoder_cases as cases
from encoder_cases import unpack_bits, whole
from hata_kernels.encode.triton_step import StepScratch
from hata_kernels.encoders import Queries

SLOTS = 60

# method, tokens, KV heads, group, head size, bits, options
STEPS = [
    pytest.param("hata", 1, 8, 4, 128, 128, {}, id="hata-T1-D128-r128"),
    pytest.param("hata", 5, 2, 3, 64, 96, {"scale_bits": 8}, id="hata-T5-G3-D64-r96-scale8"),
    pytest.param("random", 16, 1, 1, 96, 32, {}, id="random-T16-G1-D96-r32"),
    pytest.param("hata", 17, 1, 2, 256, 64, {"scale_bits": 16}, id="hata-T17-D256-r64-scale16"),
    pytest.param("hata", 15, 3, 5, 80, 256, {"scale_bits": 16}, id="hata-T15-G5-D80-r256-scale16"),
    pytest.param("hata", 40, 2, 8, 64, 64, {}, id="hata-T40-G8-D64-r64"),
    pytest.param("asymmetric", 1, 8, 4, 128, 128, {}, id="one-stage-T1-B4-D128-r128"),
    pytest.param(
        "asymmetric", 15, 2, 7, 64, 96, {"query_bits": 1, "scale_bits": 8},
        id="one-stage-T15-B1-G7-r96-scale8",
    ),
    pytest.param(
        "asymmetric", 17, 1, 8, 256, 32, {"query_bits": 5}, id="one-stage-T17-B5-G8-D256-r32"
    ),
    pytest.param(
        "asymmetric", 16, 3, 1, 96, 256, {"query_bits": 8, "scale_bits": 16},
        id="one-stage-T16-B8-G1-D96-r256-scale16",
    ),
    pytest.param("asymmetric", 40, 2, 3, 80, 64, {"query_bits": 2}, id="one-stage-T40-B2-D80-r64"),
    pytest.param(
        "asymmetric", 1, 8, 4, 128, 128, {"stages": 2, "biased": True},
        id="residual-T1-B4-D128-r128-biased",
    ),
    pytest.param(
        "asymmetric", 15, 3, 6, 64, 64, {"stages": 2, "query_bits": 3, "scale_bits": 8},
        id="residual-T15-B3-G6-r64-scale8",
    ),
    pytest.param(
        "asymmetric", 16, 2, 2, 256, 32, {"stages": 2, "query_bits": 7},
        id="residual-T16-B7-D256-r32",
    ),
    pytest.param(
        "asymmetric", 17, 2, 1, 96, 96,
        {"stages": 2, "query_bits": 6, "scale_bits": 16, "biased": True},
        id="residual-T17-B6-G1-D96-r96-scale16-biased",
    ),
    pytest.param(
        "asymmetric", 40, 1, 5, 64, 256, {"stages": 2, "query_bits": 8}, id="residual-T40-B8-r256"
    ),
]  # fmt: skip
EVERY = pytest.mark.parametrize(
    ("method", "tokens", "kv_heads", "group", "dim", "bits", "options"), STEPS
)


def make_whole(method, kv_heads, group, dim, bits, **options):
    """An encoder of whole numbers, whose scales take all values up to the largest."""
    encoder = cases.make(method, kv_heads, group, dim, bits, **options)
    tensors = encoder.tensors()
    for name, tensor in tensors.items():
        if name in ("scale_step", "distance_bias"):
            continue
        tensors[name] = whole(*tensor.shape)
        if name in ("weight", "key_weight", "query_weight"):
            tensors[name] *= torch.rand(tensor.shape) < 0.2
    # Queries of zeros project to zeros.
    if "query_bias" in tensors:
        tensors["query_bias"][0] = 0
    shape = {"num_kv_heads": kv_heads, "group": group, "head_dim": dim}
    return type(encoder).from_tensors(tensors, **shape, **encoder.options())


def fused_step(make_numbers, tokens, kv_heads, group, dim, dtype, device):
    """Queries and keys as slices of one QKV projection; the last ones are zeros."""
    fused = make_numbers(tokens, (group + 2) * kv_heads * dim).to(dtype)
    fused[1:][-1:] = 0
    fused = fused.to(device)
    q = fused[:, : group * kv_heads * dim].unflatten(1, (-1, dim))
    k = fused[:, group * kv_heads * dim : (group + 1) * kv_heads * dim].unflatten(1, (-1, dim))
    assert tokens == 1 or not q.is_contiguous()
    assert tokens == 1 or not k.is_contiguous()
    return q, k


def run(encoder, q, k, slots, poison, scratch=None, launch=True):
    """The queries, and the poisoned buffers of codes and scales after the step, on the CPU."""
    codes, scales = cases.make_buffers(encoder, SLOTS, poison, q.device)
    stored = {"codes": codes, "slots": slots.to(q.device), "scales": scales}
    if launch:
        queries = encoder._launch_step(q, k, **stored, scratch=scratch, tally=None)
    else:
        queries = encoder.encode_step(q, k, **stored)
    rest = torch.ones(SLOTS, dtype=torch.bool)
    rest[slots.long()] = False
    assert codes.cpu()[rest].eq(-987654321).all()
    assert scales is None or scales.cpu()[rest].eq(77).all()
    queries = Queries(*(x if x is None else x.cpu() for x in queries))
    return queries, codes.cpu(), None if scales is None else scales.cpu()


def same_queries(found, expected, encoder, q) -> None:
    """Bits or levels are equal but for those within rounding of the next, which may be the next."""
    for queries in (found, expected):
        cases.assert_bias(queries.bias, encoder, q)
    found, expected = (
        unpack_bits(x.codes).unflatten(1, (encoder.num_kv_heads, -1)) for x in (found, expected)
    )
    numbers = cases.query_numbers(encoder, q)
    if not isinstance(encoder, cases.AsymmetricEncoder):
        clear = cases.is_clear(numbers)
        assert cases.mostly(clear, 0.9)
        assert torch.equal(found[clear], expected[clear])
        return
    planes = encoder.query_bits
    weights = 2 ** torch.arange(planes).view(-1, 1)
    found, expected = ((x * weights).sum(dim=2) - 2 ** (planes - 1) for x in (found, expected))
    # A projection of zeros, whose rms counts as 1, is 0 steps.
    steps = numbers.squeeze(2).nan_to_num(0.0)
    clear = ((steps - steps.round()).abs() > cases.CLOSE * 2**planes) | (steps == 0)
    assert cases.mostly(clear, 0.8)
    assert torch.equal(found[clear], expected[clear])
    assert (found - expected).abs().max() <= 1
    assert found[steps == 0].eq(0).all()


def check_step(poison, device, dtype, make_numbers, make, method, tokens, *shape, **options):
    kv_heads, group, dim, _ = shape
    there = make(method, *shape, **options).to(device, dtype)
    here = there.to("cpu", torch.float32)
    q, k = fused_step(make_numbers, tokens, kv_heads, group, dim, dtype, device)
    slots = torch.randperm(SLOTS)[:tokens].to(torch.int32 if tokens % 2 else torch.int64)
    q_found, found, scales = run(there, q, k, slots, poison)
    on_cpu = (q.cpu(), k.cpu(), slots, poison)
    q_expected, expected, expected_scales = run(here, *on_cpu, launch=False)
    rows = slots.long()
    if make_numbers is whole:
        # Every sum is exact.
        assert torch.equal(found, expected)
        if method != "asymmetric":
            assert torch.equal(q_found.codes, q_expected.codes)
    for codes in (found, expected):
        cases.assert_key_bits(unpack_bits(codes[rows]), here, k.cpu(), 0.9)
    same_queries(q_found, q_expected, here, q.cpu())
    if scales is not None:
        most = 2**there.scale_bits - 1
        error = (scales.long() & most) - (expected_scales.long() & most)
        assert error.abs().max() <= 1
        cases.assert_scales(scales[rows], here, k.cpu())


NUMBERS = pytest.mark.parametrize(
    ("make_numbers", "make"),
    [(whole, make_whole), (torch.randn, cases.make)],
    ids=["whole", "real"],
)


@NUMBERS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@EVERY
def test_triton_is_the_reference(
    device, poison, dtype, make_numbers, make,
    method, tokens, kv_heads, group, dim, bits, options,
) -> None:  # fmt: skip
    shape = (tokens, kv_heads, group, dim, bits)
    check_step(poison, device, dtype, make_numbers, make, method, *shape, **options)


@pytest.mark.gpu
@NUMBERS
@EVERY
def test_triton_is_the_reference_in_bfloat16(
    poison, make_numbers, make, method, tokens, kv_heads, group, dim, bits, options
) -> None:
    # On the GPU only: Triton's interpreter has no bfloat16.
    shape = (tokens, kv_heads, group, dim, bits)
    check_step(poison, "cuda", torch.bfloat16, make_numbers, make, method, *shape, **options)


@pytest.mark.parametrize("planes", range(1, 9))
def test_every_number_of_planes(device, poison, planes) -> None:
    for stages in (1, 2):
        options = {"query_bits": planes, "stages": stages}
        shape = ("asymmetric", 5, 2, 2, 32, 64)
        check_step(poison, device, torch.float32, torch.randn, cases.make, *shape, **options)


@pytest.mark.parametrize("stages", [1, 2])
def test_scratch_serves_steps_of_any_number_of_tokens(device, poison, stages) -> None:
    kv_heads, group, dim, bits = 2, 3, 96, 64
    encoder = cases.make("asymmetric", kv_heads, group, dim, bits, stages=stages)
    encoder = encoder.to(device, torch.float32)
    scratch = encoder.step_scratch(40)
    assert isinstance(scratch, StepScratch)
    assert scratch.arrived.tolist() == [0] * 6
    scratch.partial.fill_(float("nan"))
    for tokens in (17, 40, 1, 16, 33, 40):
        q, k = fused_step(torch.randn, tokens, kv_heads, group, dim, torch.float32, device)
        slots = torch.randperm(SLOTS)[:tokens]
        expected = run(encoder, q, k, slots, poison)
        for _ in range(2):
            found = run(encoder, q, k, slots, poison, scratch)
            # The same program in the same order: the same bits.
            assert torch.equal(found[0].codes, expected[0].codes)
            assert torch.equal(found[1], expected[1])
            assert scratch.arrived.eq(0).all()
    q, k = fused_step(torch.randn, 49, kv_heads, group, dim, torch.float32, device)
    with pytest.raises(ValueError, match="scratch: expected 8 blocks of 16 tokens, found 6"):
        run(encoder, q, k, torch.arange(49), poison, scratch)


@pytest.mark.gpu
@pytest.mark.parametrize("stages", [1, 2])
def test_steps_of_a_graph_share_scratch(poison, stages) -> None:
    encoder = cases.make("asymmetric", 8, 4, 128, 128, stages=stages, biased=True)
    encoder = encoder.to("cuda", torch.bfloat16)
    layers = [fused_step(torch.randn, 24, 8, 4, 128, torch.bfloat16, "cuda") for _ in range(20)]
    slots, scratch = torch.arange(24, device="cuda"), encoder.step_scratch(30)
    codes = poison(20, SLOTS, 8, 4, dtype=torch.int32, device="cuda")

    def steps():
        return [
            encoder.encode_step(q, k, codes=codes[n], slots=slots, scratch=scratch)
            for n, (q, k) in enumerate(layers)
        ]

    expected, stored = steps(), codes.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = steps()
    for _ in range(50):
        codes.fill_(7)
        graph.replay()
        assert torch.equal(codes[:, :24], stored[:, :24])
        for now, before in zip(found, expected, strict=True):
            assert torch.equal(now.codes, before.codes)
            assert torch.equal(now.bias, before.bias)
    assert scratch.arrived.eq(0).all()


@pytest.mark.parametrize("tokens", [1, 20])
@cases.ALL
def test_a_step_is_keys_and_queries(
    any_device, poison, tokens, method, kv_heads, group, dim, bits, options
) -> None:
    encoder = cases.make(method, kv_heads, group, dim, bits, **options)
    dtype = torch.float32 if any_device.type == "cpu" else torch.bfloat16
    encoder = encoder.to(any_device, dtype)
    q, k = fused_step(torch.randn, tokens, kv_heads, group, dim, dtype, any_device)
    slots = torch.randperm(SLOTS)[:tokens].to(any_device)
    expected, expected_scales = cases.make_buffers(encoder, SLOTS, poison, any_device)
    encoder.encode_keys(k, codes=expected, slots=slots, scales=expected_scales)
    q_expected = encoder.encode_queries(q)
    for scratch in (None, encoder.step_scratch(tokens + 20)):
        codes, scales = cases.make_buffers(encoder, SLOTS, poison, any_device)
        stored = {"codes": codes, "slots": slots, "scales": scales}
        q_found = encoder.encode_step(q, k, **stored, scratch=scratch)
        assert q_found.codes.shape == q_expected.codes.shape
        if any_device.type == "cpu" or method == "hashattention":
            assert torch.equal(codes, expected)
            assert torch.equal(q_found.codes, q_expected.codes)
            cases.assert_bias(q_found.bias, encoder, q.cpu())
            assert scales is None or torch.equal(scales, expected_scales)
            continue
        # Blocks of other sizes: sums may round differently, and do so near zero.
        here = encoder.to("cpu", torch.float32)
        rows = slots.cpu()
        cases.assert_key_bits(unpack_bits(codes.cpu()[rows]), here, k.cpu(), 0.9)
        q_found, q_expected = (
            Queries(*(x if x is None else x.cpu() for x in queries))
            for queries in (q_found, q_expected)
        )
        same_queries(q_found, q_expected, here, q.cpu())
        if scales is not None:
            cases.assert_scales(scales.cpu()[rows], here, k.cpu())


@pytest.mark.parametrize("method", ["hata", "asymmetric"])
def test_no_tokens_and_wrong_arguments(device, poison, method) -> None:
    encoder = cases.make(method, 2, 3, 16).to(device, torch.float32)
    q, k = torch.randn(4, 6, 32, device=device), torch.randn(4, 2, 32, device=device)
    slots = torch.arange(4)
    queries, codes, _ = run(encoder, q[:0, :, :16], k[:0, :, :16], slots[:0], poison)
    assert queries.codes.shape == (0, 6 if method == "hata" else 8, 2)
    assert codes.eq(-987654321).all()
    with pytest.raises(ValueError, match=r"q\.stride\(2\): expected 1, found 2"):
        run(encoder, q[..., ::2], k[..., :16], slots, poison)
    with pytest.raises(ValueError, match=r"k\.stride\(2\): expected 1, found 2"):
        run(encoder, q[..., :16], k[..., ::2], slots, poison)
    with pytest.raises(
        ValueError, match=r"q\.dtype: expected torch\.float32, found torch\.float16"
    ):
        run(encoder, q[..., :16].half(), k[..., :16].half(), slots, poison)


def test_codes_that_are_too_wide(device, poison) -> None:
    encoder = cases.make("asymmetric", 2, 3, 16, 1056).to(device, torch.float32)
    q, k = torch.randn(4, 6, 16, device=device), torch.randn(4, 2, 16, device=device)
    with pytest.raises(ValueError, match="bits: expected at most 1024"):
        run(encoder, q, k, torch.arange(4), poison)
