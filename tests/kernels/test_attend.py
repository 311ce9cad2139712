"""Attention over selected slots: CPU against loops in float64 and against SGLang's own call."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from attend_cases import assert_close, softmax_attention
from hata_kernels.attend import SparseDecode, attend_naive, workspace_bytes
from hata_kernels.attend.pages import write_pages

SLOTS = 2500

# query heads, KV heads, head size
SHAPES = [
    pytest.param(9, 3, 64, id="H9of3-D64"),
    pytest.param(8, 1, 128, id="H8of1-D128"),
    pytest.param(2, 2, 96, id="H2of2-D96"),
]


def make_selection(counts: list[int], kv_heads: int, k: int) -> torch.Tensor:
    """Shuffled slots per head, -1 after the counts."""
    slots = torch.full((len(counts), kv_heads, k), -1, dtype=torch.int32)
    for b, count in enumerate(counts):
        for h in range(kv_heads):
            slots[b, h, :count] = (torch.randperm(SLOTS - 1)[:count] + 1).int()
    return slots


def make_inputs(batch, q_heads, kv_heads, dim, dtype):
    q = torch.randn(batch, q_heads, dim).to(dtype)
    k_cache, v_cache = (torch.randn(SLOTS, kv_heads, dim).to(dtype) for _ in range(2))
    return q, k_cache, v_cache


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("q_heads", "kv_heads", "dim"), SHAPES)
def test_naive_is_softmax_attention(q_heads, kv_heads, dim, dtype) -> None:
    counts = torch.tensor([40, 1, 17])
    slots = make_selection(counts.tolist(), kv_heads, 40)
    inputs = (*make_inputs(3, q_heads, kv_heads, dim, dtype), slots, counts)
    out = attend_naive(*inputs, scale=0.25)
    assert out.dtype == dtype
    assert_close(out, softmax_attention(*inputs, scale=0.25))


@pytest.fixture(params=[1, 2], ids=["1-thread", "2-threads"])
def threads(request: pytest.FixtureRequest):
    """PyTorch splits the keys of a CPU attention call by thread count."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("length", [1, 7, 256, 513, 2000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("q_heads", "kv_heads", "dim"), SHAPES)
def test_naive_over_the_whole_context_is_bitwise_torch_native(
    threads, q_heads, kv_heads, dim, dtype, length
) -> None:
    lengths = [length, max(1, length // 2), length]
    q, k_cache, v_cache = make_inputs(3, q_heads, kv_heads, dim, dtype)
    slots = torch.full((3, kv_heads, length + 3), -1, dtype=torch.int32)
    for b, size in enumerate(lengths):
        slots[b, :, :size] = (torch.randperm(SLOTS - 1)[:size] + 1).int()
    out = attend_naive(q, k_cache, v_cache, slots, torch.tensor(lengths), scale=dim**-0.5)
    for b, size in enumerate(lengths):
        tokens = slots[b, 0, :size]
        # The call of SGLang's torch_native backend (torch_native_backend.py, decode).
        expected = scaled_dot_product_attention(
            q[b : b + 1].movedim(0, 1).unsqueeze(0),
            k_cache[tokens].movedim(0, 1).unsqueeze(0),
            v_cache[tokens].movedim(0, 1).unsqueeze(0),
            enable_gqa=q_heads != kv_heads,
            scale=dim**-0.5,
        )
        assert torch.equal(out[b], expected.squeeze(0).movedim(1, 0)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_naive_result_does_not_depend_on_the_other_rows(threads, dtype) -> None:
    counts = torch.tensor([600, 3, 600, 512], dtype=torch.int32)
    q, k_cache, v_cache = make_inputs(4, 9, 3, 64, dtype)
    slots = make_selection(counts.tolist(), 3, 600)
    together = attend_naive(q, k_cache, v_cache, slots, counts, scale=0.125)
    for b in range(4):
        row = slice(b, b + 1)
        alone = attend_naive(q[row], k_cache, v_cache, slots[row], counts[row], scale=0.125)
        assert torch.equal(alone[0], together[b])


@pytest.mark.parametrize(
    ("counts", "k"), [([5, 1, 3], 5), ([1], 1), ([1500, 2], 1500)], ids=["mixed", "one", "blocks"]
)
def test_pages_are_slot_times_heads_plus_head(device, poison, counts, k) -> None:
    kv_heads = 3
    slots = make_selection(counts, kv_heads, k)
    sizes = [count for count in counts for _ in range(kv_heads)]
    # A row that owns more pages than there are slots gets those that there are.
    sizes[-1] += 4
    indptr = torch.tensor([sum(sizes[:row]) for row in range(len(sizes) + 1)], dtype=torch.int32)
    expected = poison(sum(sizes) + 9, dtype=torch.int32)
    for row, selected in enumerate(slots.flatten(0, 1)):
        begin, end = indptr[row : row + 2].tolist()
        own = [
            max(0, slot) * kv_heads + row % kv_heads for slot in selected[: end - begin].tolist()
        ]
        expected[begin : begin + len(own)] = torch.tensor(own, dtype=torch.int32)
    pages = poison(*expected.shape, dtype=torch.int32, device=device)
    write_pages(slots.to(device), indptr.to(device), pages)
    assert torch.equal(pages.cpu(), expected)


def test_pages_never_point_outside_the_pool(device) -> None:
    slots = torch.tensor([[[4, -1, -1]]], dtype=torch.int32, device=device)
    pages = torch.full((3,), 99, dtype=torch.int32, device=device)
    write_pages(slots, torch.tensor([0, 3], dtype=torch.int32, device=device), pages)
    assert pages.tolist() == [4, 0, 0]


def test_wrong_slots_are_named() -> None:
    where = (torch.tensor([0, 3], dtype=torch.int32), torch.zeros(3).int())
    with pytest.raises(ValueError, match=r"slots\.shape\[2\]: expected at least 1, found 0"):
        write_pages(torch.ones(1, 1, 0).int(), *where)


def make_sparse_decode(
    max_batch, q_heads, kv_heads, dim, k_max, dtype, /, **changed
) -> SparseDecode:
    """A wrapper of the given sizes; ``changed`` replaces any of its arguments, dtype too."""
    size = workspace_bytes(
        max_batch * kv_heads,
        q_heads // kv_heads,
        dim,
        torch.cuda.get_device_properties("cuda").multi_processor_count,
    )
    arguments = {
        "max_batch": max_batch,
        "num_kv_heads": kv_heads,
        "group": q_heads // kv_heads,
        "head_dim": dim,
        "k_max": k_max,
        "dtype": dtype,
        "device": torch.device("cuda"),
        "workspace": torch.zeros(size, dtype=torch.uint8, device="cuda"),
        "scale": dim**-0.5,
    }
    return SparseDecode(**{**arguments, **changed})


@pytest.mark.gpu
@pytest.mark.parametrize("use_cuda_graph", [False, True], ids=["eager", "graph-buffers"])
@pytest.mark.parametrize(
    ("q_heads", "kv_heads", "dim"), [(32, 8, 128), (9, 3, 64), (14, 2, 64)], ids=str
)
def test_sparse_decode_equals_naive(poison, use_cuda_graph, q_heads, kv_heads, dim) -> None:
    batch, k_max, dtype = 5, 300, torch.bfloat16
    decode = make_sparse_decode(
        batch, q_heads, kv_heads, dim, k_max, dtype, use_cuda_graph=use_cuda_graph
    )
    q, k_cache, v_cache = make_inputs(batch, q_heads, kv_heads, dim, dtype)
    for counts in ([300] * 5, [1, 300, 129, 128, 2], [300] * 5, [7] * 5):
        slots = make_selection(counts, kv_heads, k_max)
        sizes = torch.tensor(counts, dtype=torch.int32)
        assert decode.plan(sizes)
        assert not decode.plan(sizes.clone())
        out = poison(batch, q_heads, dim, dtype=dtype, device="cuda")
        decode.run(*(a.cuda() for a in (q, k_cache, v_cache, slots)), out=out)
        expected = attend_naive(q, k_cache, v_cache, slots, sizes, scale=dim**-0.5)
        assert_close(out, expected)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"head_dim": 96}, "head_dim: expected 64 or 128 or 256, found 96"),
        ({"dtype": torch.float32}, "dtype: expected bfloat16 or float16"),
        ({"workspace": torch.zeros(8, dtype=torch.uint8)}, "workspace: expected at least"),
    ],
    ids=["head-dim", "dtype", "workspace"],
)
def test_sparse_decode_names_wrong_arguments(changed, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_sparse_decode(2, 8, 2, 128, 64, torch.bfloat16, **changed)


@pytest.mark.gpu
def test_sparse_decode_refuses_lengths_it_was_not_made_for() -> None:
    decode = make_sparse_decode(2, 8, 2, 128, 64, torch.bfloat16, use_cuda_graph=True)
    q, k_cache, v_cache = (a.cuda() for a in make_inputs(2, 8, 2, 128, torch.bfloat16))
    slots = make_selection([64, 64], 2, 64).cuda()
    with pytest.raises(ValueError, match="plan: expected a successful call before run"):
        decode.run(q, k_cache, v_cache, slots)
    for counts, message in (([64], "found 1"), ([64, 65], "1 to 64"), ([0, 3], "1 to 64")):
        with pytest.raises(ValueError, match=message):
            decode.plan(torch.tensor(counts, dtype=torch.int32))
    decode.plan(torch.tensor([64, 5], dtype=torch.int32))
    with pytest.raises(ValueError, match="at least 64, found 63"):
        decode.run(q, k_cache, v_cache, slots[..., :63].contiguous())
    # A pool whose (slot, head) pages do not fit in int32, without its memory.
    huge = torch.empty(2**30, 2, 128, dtype=torch.bfloat16, device="meta")
    with pytest.raises(ValueError, match=r"less than 2\*\*31, found 2147483648"):
        decode.run(q, huge, huge, slots)


def test_sparse_decode_needs_a_gpu() -> None:
    with pytest.raises(ValueError, match="device: expected a CUDA device, found cpu"):
        SparseDecode(
            max_batch=1,
            num_kv_heads=1,
            group=1,
            head_dim=64,
            k_max=8,
            dtype=torch.bfloat16,
            device=torch.device("cpu"),
            workspace=torch.zeros(8, dtype=torch.uint8),
            scale=1.0,
        )


GOOD = {
    "q": torch.zeros(2, 6, 64),
    "k_cache": torch.zeros(50, 3, 64),
    "v_cache": torch.zeros(50, 3, 64),
    "slots": torch.zeros(2, 3, 8, dtype=torch.int32),
    "counts": torch.tensor([8, 1]),
    "scale": 1.0,
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"q": torch.zeros(2, 4, 64)}, "a multiple of 3, found 4"),
        (
            {"q": torch.zeros(2, 6, 64).half()},
            r"k_cache\.dtype: expected torch\.float16, found torch\.float32",
        ),
        ({"counts": torch.tensor([8, 9])}, "counts: expected 1 to 8"),
        ({"counts": torch.tensor([8, 0])}, "counts: expected 1 to 8"),
        ({"slots": torch.zeros(2, 2, 8, dtype=torch.int32)}, r"slots\.shape: expected \[2, 3, a"),
        ({"v_cache": torch.zeros(3, 50, 64).transpose(0, 1)}, "v_cache strides"),
    ],
    ids=["heads", "dtype", "high", "zero", "slots", "strides"],
)
def test_naive_names_wrong_arguments(changed, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attend_naive(**{**GOOD, **changed})
