"""What tests of attention share: the definition in float64, and how close results come to it."""

from __future__ import annotations

import itertools

import torch

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
NOWHERE = 2**31 - 1  # a slot that cannot be read


def softmax_attention(q, k_cache, v_cache, slots, *sizes, scale):
    """Attention one query head at a time.

    ``slots [bs, kv_heads, k]``, or ``[bs, k]`` for all heads; a row attends the least of its sizes.
    """
    out = torch.zeros(q.shape, dtype=torch.float64)
    group = q.shape[1] // k_cache.shape[1]
    for b, head in itertools.product(range(q.shape[0]), range(q.shape[1])):
        own = slots[b] if slots.dim() == 2 else slots[b, head // group]
        chosen = own[: min(int(size[b]) for size in sizes)].long()
        logits = scale * (k_cache[chosen, head // group].double() @ q[b, head].double())
        out[b, head] = logits.softmax(0) @ v_cache[chosen, head // group].double()
    return out


BOUNDS = {F32: 1e-5, F16: 2e-3, BF16: 1e-2}


def assert_close(out: torch.Tensor, expected: torch.Tensor) -> None:
    """Relative root mean square: rounding of the dtype, and no NaN."""
    out_there, expected = out.double().cpu(), expected.double().cpu()
    # Not less than: rows of padding attend to a key of zeros.
    assert (out_there - expected).norm() <= expected.norm() * BOUNDS[out.dtype]


def moved(arguments: dict, device: torch.device) -> dict:
    """Tensors on a device, and what is made for one."""
    there = {}
    for name, value in arguments.items():
        there[name] = value.to(device) if isinstance(value, torch.Tensor) else value
        if callable(value):
            there[name] = value(device)
    return there


def queries_and_caches() -> dict:
    """Two tokens' queries and the caches of 50 slots, of six and three heads of 64."""
    shapes = {"q": (2, 6, 64), "k_cache": (50, 3, 64), "v_cache": (50, 3, 64)}
    return {name: torch.zeros(shape, dtype=F16) for name, shape in shapes.items()}


# What no call takes in place of these or as its output, and what it says.
WRONG = [
    ({"q": torch.zeros(2, 4, 64).half()}, r"q\.shape\[1\]: expected a multiple of 3, found 4"),
    ({"q": torch.zeros(2, 6, 32).half()}, r"q\.shape: expected \[any, any, 64\]"),
    ({"q": torch.zeros(2, 6, 64).int()}, r"q\.dtype: expected torch\.float32 or"),
    ({"q": torch.zeros(2, 6, 64).bfloat16()}, r"k_cache\.dtype: expected torch\.bfloat16"),
    ({"q": torch.zeros(2, 6, 64, dtype=F16, device="meta")}, r"q\.device: expected cpu"),
    ({"k_cache": torch.zeros(50, 192).half()}, r"k_cache\.shape: expected \[any, any, any\]"),
    ({"k_cache": torch.zeros(3, 50, 64).half().transpose(0, 1)}, "k_cache strides"),
    ({"k_cache": torch.zeros(50, 3, 64).to(torch.float8_e4m3fn)}, r"k_cache\.dtype: expected"),
    ({"v_cache": torch.zeros(50, 3, 64).bfloat16()}, r"v_cache\.dtype: expected torch\.float16"),
    ({"v_cache": torch.zeros(51, 3, 64).half()}, r"v_cache\.shape: expected \[50, 3, 64\]"),
    ({"v_cache": torch.zeros(3, 50, 64).half().transpose(0, 1)}, "v_cache strides"),
    ({"seq_lens": torch.tensor([5])}, r"seq_lens\.shape: expected \[2\], found \[1\]"),
    ({"seq_lens": torch.ones(2)}, r"seq_lens\.dtype: expected torch\.int32 or torch\.int64"),
    ({"seq_lens": torch.ones(4).int()[::2]}, "seq_lens strides"),
    ({"out": torch.zeros(2, 6, 64)}, r"out\.dtype: expected torch\.float16"),
    ({"out": torch.zeros(2, 6, 65).half()}, r"out\.shape: expected \[2, 6, 64\]"),
    ({"out": torch.zeros(2, 64, 6).half().transpose(1, 2)}, "out strides"),
]  # fmt: skip
# What only the reference takes.
WRONG_TO_LAUNCH = [
    (
        {name: x.float() for name, x in queries_and_caches().items()},
        r"q\.dtype: expected torch\.bfloat16 or",
    ),
    ({"q": torch.zeros(2, 195, 64).half()}, "query heads per KV head: expected 1 to 64"),
    (
        {
            name: tensor.new_zeros(*tensor.shape[:2], 80)
            for name, tensor in queries_and_caches().items()
        },
        r"q\.shape\[2\]: expected 64 or 96 or 128 or 256, found 80",
    ),
]
