"""Exact scores: the CPU scorer against loops in float64, the Triton one against the CPU one."""

from __future__ import annotations

import math

import pytest
import torch

from attend_cases import moved
from hata_kernels.score import exact_score
from hata_kernels.score import exact_triton as exact
from hata_kernels.score.exact import exact_reference

SLOTS = 1300

# lengths, width, KV heads, group, head size, sink, recent
CASES = [
    pytest.param([1], 1, 2, 3, 64, 0, 0, id="ctx1-width1"),
    pytest.param([3, 9], 40, 1, 1, 96, 4, 8, id="shorter-than-sink-and-recent-G1-D96"),
    pytest.param([512, 513, 511], 600, 1, 4, 64, 1, 1, id="around-a-split-G4"),
    pytest.param([63, 1200, 65], 1200, 2, 7, 128, 2, 5, id="ragged-G7-D128"),
    pytest.param([200], 230, 2, 16, 256, 0, 3, id="G16-D256"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_exact_score_sums_the_groups_softmax(poison, make_token_slots, dtype) -> None:
    lengths, kv_heads, group, dim, scale = [1, 37, 90], 2, 3, 16, 0.3
    k_cache = torch.randn(100, kv_heads, dim).to(dtype)
    q = torch.randn(3, kv_heads * group, dim).to(dtype)
    token_slots = make_token_slots(lengths, 90, 100)
    out = poison(3, kv_heads, 90, dtype=torch.float32)
    exact_score(
        q, k_cache, token_slots, torch.tensor(lengths), scale=scale, sink=2, recent=3, out=out
    )
    for b, length in enumerate(lengths):
        table = token_slots[b].tolist()
        for h in range(kv_heads):
            expected = [0.0] * length
            for member in range(group):
                query = q[b, h * group + member].double()
                logits = [
                    scale * float(query @ k_cache[table[t], h].double()) for t in range(length)
                ]
                peak = max(logits)
                total = sum(math.exp(logit - peak) for logit in logits)
                for t, logit in enumerate(logits):
                    expected[t] += math.exp(logit - peak) / total
            for t in range(length):
                if t < 2 or t >= length - 3:
                    assert out[b, h, t] == math.inf
                else:
                    assert float(out[b, h, t]) == pytest.approx(expected[t], rel=1e-4)
        assert out[b, :, length:].isnan().all()


def make_inputs(make_token_slots, lengths, width, kv_heads, group, dim, dtype):
    """A cache whose unused slots are NaN, and queries that are a slice of a fused projection."""
    k_cache = torch.full((SLOTS, kv_heads, dim), float("nan"), dtype=dtype)
    token_slots = make_token_slots(lengths, width + 3, SLOTS)
    for row, length in enumerate(lengths):
        used = token_slots[row, :length].long()
        k_cache[used] = torch.randn(length, kv_heads, dim).to(dtype)
    fused = torch.randn(len(lengths), (kv_heads * group + 2) * dim).to(dtype)
    q = fused[:, : kv_heads * group * dim].unflatten(1, (-1, dim))
    return q, k_cache, token_slots, torch.tensor(lengths)


@pytest.mark.parametrize("tile", [2, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("lengths", "width", "kv_heads", "group", "dim", "sink", "recent"), CASES)
def test_triton_equals_the_reference(
    device,
    monkeypatch,
    poison,
    make_token_slots,
    dtype,
    tile,
    lengths,
    width,
    kv_heads,
    group,
    dim,
    sink,
    recent,
) -> None:
    monkeypatch.setattr(exact, "TILE", tile)
    monkeypatch.setattr(exact, "SPLIT", 512 if tile == 64 else 64)
    inputs = make_inputs(make_token_slots, lengths, width, kv_heads, group, dim, dtype)
    # Peaked softmax: logits of up to about 40.
    options = {"scale": 10 / dim**0.5, "sink": sink, "recent": recent}
    expected = poison(len(lengths), kv_heads, width, dtype=torch.float32)
    exact_reference(*inputs, **options, out=expected)
    out = poison(len(lengths), kv_heads, width, dtype=torch.float32, device=device)
    assert exact_score(*(a.to(device) for a in inputs), **options, out=out) is out
    torch.testing.assert_close(out.cpu(), expected, rtol=2e-4, atol=1e-12, equal_nan=True)
    for b, length in enumerate(lengths):
        inner = out[b, :, :length]
        assert bool(inner[:, :sink].isinf().all())
        total = inner[:, min(sink, length) : max(0, length - recent)].sum(-1)
        assert bool((total <= group * 1.001).all())


@pytest.mark.gpu
@pytest.mark.parametrize("dim", [64, 96, 128, 256])
@pytest.mark.parametrize("group", [1, 3, 4, 8, 16])
def test_triton_bfloat16(poison, make_token_slots, dim, group) -> None:
    # On the GPU only: Triton's interpreter has no bfloat16.
    inputs = make_inputs(make_token_slots, [1200, 7], 1200, 2, group, dim, torch.bfloat16)
    options = {"scale": dim**-0.5, "sink": 2, "recent": 3}
    expected = poison(2, 2, 1200, dtype=torch.float32)
    exact_score(*inputs, **options, out=expected)
    out = poison(2, 2, 1200, dtype=torch.float32, device="cuda")
    exact_score(*(a.cuda() for a in inputs), **options, out=out)
    torch.testing.assert_close(out.cpu(), expected, rtol=2e-4, atol=1e-12, equal_nan=True)


@pytest.mark.gpu
def test_slots_beyond_int32_elements(poison) -> None:
    slots = 2**31 // (8 * 256) + 100  # slots * heads * D passes 2**31
    k_cache = torch.zeros(slots, 8, 256, dtype=torch.bfloat16, device="cuda")
    k_cache[-50:] = torch.randn(50, 8, 256)
    table = torch.arange(slots - 50, slots, dtype=torch.int32).view(1, 50)
    q = torch.randn(1, 8, 256).bfloat16()
    options = {"scale": 0.1, "sink": 0, "recent": 0}
    expected = poison(1, 8, 50, dtype=torch.float32)
    small = k_cache[-50:].cpu()
    local = torch.arange(50, dtype=torch.int32).view(1, 50)
    exact_score(q, small, local, torch.tensor([50]), **options, out=expected)
    out = poison(1, 8, 50, dtype=torch.float32, device="cuda")
    where = (table.cuda(), torch.tensor([50], device="cuda"))
    exact_score(q.cuda(), k_cache, *where, **options, out=out)
    torch.testing.assert_close(out.cpu(), expected, rtol=2e-4, atol=1e-12)


GOOD = {
    "q": torch.zeros(2, 6, 64),
    "k_cache": torch.zeros(50, 3, 64),
    "token_slots": torch.zeros(2, 10, dtype=torch.int32),
    "seq_lens": torch.tensor([5, 10]),
    "scale": 1.0,
    "sink": 1,
    "recent": 1,
    "out": torch.zeros(2, 3, 10),
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"q": torch.zeros(2, 4, 64)}, r"q\.shape\[1\]: expected a multiple of 3, found 4"),
        ({"q": torch.zeros(2, 6, 32)}, r"q\.shape: expected \[any, any, 64\]"),
        ({"k_cache": torch.zeros(50, 3, 64).int()}, r"k_cache\.dtype"),
        ({"out": GOOD["out"].half()}, r"out\.dtype: expected torch\.float32"),
        ({"out": torch.zeros(2, 3, 11)}, "= 11, found 10"),
        ({"recent": -1}, "recent: expected at least 0, found -1"),
        ({"seq_lens": torch.tensor([5, 1, 9, 1])[::2]}, "seq_lens strides: expected a contiguous"),
    ],
    ids=["heads", "dim", "dtype", "out-dtype", "width", "recent", "strided-lens"],
)
def test_wrong_arguments_are_named(changed, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        exact_score(**{**GOOD, **changed})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"q": torch.zeros(2, 6, 80), "k_cache": torch.zeros(50, 3, 80)},
            r"q\.shape\[2\]: expected 64 or 96 or 128 or 256, found 80",
        ),
        ({"q": torch.zeros(2, 51, 64)}, "query heads per KV head: expected 1 to 16, found 17"),
        ({"q": torch.zeros(2, 6, 64).half()}, r"q\.dtype: expected torch\.float32, found"),
        ({"q": torch.zeros(2, 64, 6).transpose(1, 2)}, r"q\.stride\(2\): expected 1, found 6"),
        ({"k_cache": torch.zeros(3, 50, 64).transpose(0, 1)}, "k_cache strides"),
    ],
    ids=["dim", "group", "dtype", "stride", "cache-strides"],
)
def test_launches_name_what_only_the_reference_does(device, changed, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        exact_score(**moved({**GOOD, **changed}, device))


def test_triton_keeps_the_next_row_when_a_length_exceeds_the_width(device, poison) -> None:
    inputs = (torch.randn(2, 1, 64), torch.randn(50, 1, 64))
    inputs += (torch.randint(0, 50, (2, 40), dtype=torch.int32), torch.tensor([40, 3]))
    out = poison(2, 1, 20, dtype=torch.float32, device=device)
    exact_score(*(a.to(device) for a in inputs), scale=0.1, sink=0, recent=0, out=out)
    assert out[1, :, 3:].isnan().all()
    assert float(out[0].sum()) == pytest.approx(1)
