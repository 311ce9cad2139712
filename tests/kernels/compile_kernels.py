"""Compile every kernel for a GPU that need not be there; run by test_compile.py on its own.

Each wrapper is called as a server calls it, on CPU tensors, with Triton's launches turned into
compilations for compute capability 9.0 by the real compiler and ptxas. The tests that run kernels
without a GPU use Triton's interpreter, which takes more than the compiler does.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import tempfile
import time

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from hata_kernels.attend.dense import attend_dense_triton
from hata_kernels.attend.gather import attend_gather
from hata_kernels.attend.pages import write_pages
from hata_kernels.encode.triton import encode_triton
from hata_kernels.encode.triton_residual import encode_residual_triton
from hata_kernels.encode.triton_step import encode_step_asymmetric
from hata_kernels.encode.triton_step_linear import encode_step_linear
from hata_kernels.encoders import AsymmetricEncoder, LinearEncoder, MlpEncoder
from hata_kernels.rank.triton import rank_triton
from hata_kernels.rows import RowGroups
from hata_kernels.rows.groups_triton import group_rows_triton
from hata_kernels.rows.triton import copy_rows_triton
from hata_kernels.score import score_dtype, score_levels
from hata_kernels.score.exact_triton import exact_score_triton
from hata_kernels.score.scoring import Scoring
from hata_kernels.score.triton import score_triton
from hata_kernels.select.flashinfer_topk import _repeat_rows_kernel
from hata_kernels.select.triton import select_triton
from hata_sglang.decoding.gpu_buffers import eager_width
from hata_sglang.warm import PROMPTS

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
FP8 = torch.float8_e4m3fn
SHARED_MEMORY = 227 * 1024  # of one block on an H100
# Kernels were measured with this release, and fitted into registers; with others some bytes spill.
FITTED = triton.__version__.startswith("3.6.")
# Bytes of local memory that a thread may use, by kernel; none elsewhere.
SPILLS = {
    "_count_kernel": 512,  # its histogram of 4096 bins
    # Kept to 128 registers, so that 16 warps are in flight; nothing of its inner loop is spilled.
    "shared_kernel": 16,
    # 16 warps leave it 128 registers.
    "take_kernel": 16,
    # With 8-bit scales ptxas stops at 64 registers, though it may take more.
    "_linear_step_kernel": 24,
}
compiled: list[str] = []
binaries: dict[str, set[str]] = {}  # by kernel


class Driver:
    """What `JITFunction.run` asks of a driver before it compiles."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def compile_only(run):
    """Replace a launch by its compilation."""

    def warm_up(self, *args, grid, warmup, **kwargs):
        if "SCORING" in kwargs:  # the wrapper chose by the tensors' device
            kwargs["SCORING"] = dataclasses.replace(kwargs["SCORING"], ptx=True)
        if "PDL" in kwargs:
            kwargs |= {"PDL": True, "launch_pdl": True}  # as `chain_options` does on an H100
        assert len(grid) <= 3, grid
        assert all(type(size) is int and 0 < size < 2**16 for size in grid), grid
        start = time.time()
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        assert ".target sm_90" in kernel.asm["ptx"]
        assert ("griddepcontrol.wait" in kernel.asm["ptx"]) == kwargs.get("PDL", False)
        assert len(kernel.asm["cubin"]) > 0
        shared = kernel.metadata.shared
        assert shared <= SHARED_MEMORY, f"{self.__name__}: {shared} bytes of shared memory"
        spilled = stack_bytes(kernel.asm["cubin"])
        most = (
            filter_spills(**kwargs)
            if self.__name__ == "filter_kernel"
            else SPILLS.get(self.__name__, 0)
        )
        assert spilled <= most or not FITTED, (
            f"{self.__name__}: {spilled} bytes of registers spilled"
        )
        if self.__name__ == "shared_kernel":
            unpacked = re.search(r"tt\.reshape .*xi8, #.* -> .*opIdx = 1", kernel.asm["ttgir"])
            assert unpacked, "bits are not unpacked where tensor cores take them"
        compiled.append(self.__name__)
        binaries.setdefault(self.__name__, set()).add(kernel.hash)
        if "-v" in sys.argv:
            seconds = time.time() - start
            print(f"{seconds:5.1f} s  {self.__name__}  shared {shared}  spilled {spilled}")

    return warm_up


def filter_spills(*, SCORING: Scoring, **_) -> int:
    """Bytes that the filter may spill: it has 96 registers, for five programs of an SM."""
    # Eight planes, scales of 16 bits: products of 64 bits. No shipped set has these.
    if SCORING.wide:
        return 640
    return 128 if SCORING.words < SCORING.words_pow2 else 0  # words are loaded one by one


def stack_bytes(cubin: bytes) -> int:
    """Bytes of local memory per thread: what did not fit into registers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:(\d+)", usage).group(1))


def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def encode_all() -> None:
    """Linear, asymmetric and MLP encoders: dtypes, odd sizes, scales, few and many tokens."""
    for dtype, weight_dtype in ((BF16, BF16), (F16, F16), (BF16, F32), (F32, F32)):
        for dim, bits, heads in ((128, 128, 4), (64, 96, 3), (96, 256, 1)):
            q = zeros(2, 2 * heads, dim, dtype=dtype)
            encode_triton(q, zeros(heads, dim, bits, dtype=weight_dtype))
    for scale_bits in (0, 8, 16):
        steps = {"scale_step": torch.ones(2)} if scale_bits else {}
        shape = {"num_kv_heads": 2, "group": 4, "head_dim": 128}
        linear = {"weight": torch.randn(2, 128, 256), **steps}
        run_keys(LinearEncoder.from_tensors(linear, scale_bits=scale_bits, **shape))
        asymmetric = {
            "key_weight": torch.randn(2, 128, 128),
            "key_bias": torch.randn(2, 128),
            "query_weight": torch.randn(2, 512, 128),
            "query_bias": torch.randn(2, 128),
            **steps,
        }
        for planes in (1, 4, 8) if scale_bits == 0 else (3,):
            options = {"query_bits": planes, "scale_bits": scale_bits}
            encoder = AsymmetricEncoder.from_tensors(asymmetric, **options, **shape)
            run_keys(encoder)
            run_queries(encoder, BF16)
    for bits, group, dim in ((96, 3, 64), (256, 7, 256), (32, 1, 96)):
        tensors = {
            "key_weight": torch.randn(1, dim, bits),
            "key_bias": torch.randn(1, bits),
            "query_weight": torch.randn(1, group * dim, bits),
            "query_bias": torch.randn(1, bits),
        }
        encoder = AsymmetricEncoder(tensors, num_kv_heads=1, group=group, head_dim=dim)
        for dtype in (BF16, F32):
            run_queries(encoder.to("cpu", dtype), dtype)
    residual_all()
    encoder = mlp()
    run_keys(encoder)
    run_queries(encoder.to("cpu", BF16), BF16)


def mlp() -> MlpEncoder:
    """HashAttention's, of 32 bits."""
    tensors = {}
    for side in ("key", "query"):
        for n, (size, out) in enumerate(((128, 128), (128, 128), (128, 32))):
            tensors[f"{side}.{n}.weight"] = torch.randn(4, size, out)
            tensors[f"{side}.{n}.bias"] = torch.randn(4, out)
    return MlpEncoder.from_tensors(tensors, num_kv_heads=2, group=2, head_dim=128)


def linear_and_asymmetric() -> tuple[LinearEncoder, AsymmetricEncoder]:
    """Encoders of 128 bits as a server has them."""
    shape = {"num_kv_heads": 2, "group": 4, "head_dim": 128}
    tensors = {
        "key_weight": torch.randn(2, 128, 128),
        "key_bias": torch.randn(2, 128),
        "query_weight": torch.randn(2, 512, 128),
        "query_bias": torch.randn(2, 128),
        "residual_weight": torch.randn(2, 64, 64),
    }
    linear = LinearEncoder({"weight": torch.randn(2, 128, 128)}, **shape)
    asymmetric = AsymmetricEncoder(tensors, **shape, stages=2)
    return linear.to("cpu", BF16), asymmetric.to("cpu", BF16)


def residual_all() -> None:
    """Keys in two stages: whole and half words, scales, the largest code, mixed dtypes."""
    for dim, bits, scale_bits in (
        (128, 128, 0), (128, 256, 16), (64, 96, 8), (96, 32, 8), (128, 64, 0), (256, 1024, 0),
    ):  # fmt: skip
        tensors = {
            "key_weight": torch.randn(2, dim, bits),
            "key_bias": torch.randn(2, bits),
            "query_weight": torch.randn(2, dim, bits),
            "query_bias": torch.randn(2, bits),
            "residual_weight": torch.randn(2, bits // 2, bits // 2),
        }
        if scale_bits:
            tensors["scale_step"] = torch.ones(2)
        shape = {"num_kv_heads": 2, "group": 1, "head_dim": dim}
        run_keys(AsymmetricEncoder(tensors, **shape, scale_bits=scale_bits, stages=2))
    # float32 weights under half-precision keys.
    encode_residual_triton(
        zeros(50, 2, 128, dtype=BF16),
        zeros(2, 128, 256, dtype=F32),
        zeros(2, 256, dtype=F32),
        zeros(2, 128, 128, dtype=F32),
        out=zeros(99, 2, 8),
        slots=zeros(50),
    )


def run_keys(encoder) -> None:
    """A decoding step's few keys, and a prefill's many, in bfloat16; also float32 keys."""
    for dtype, tokens in ((BF16, 1), (BF16, 100), (F32, 40)):
        k = torch.randn(tokens, encoder.num_kv_heads, encoder.head_dim).to(dtype)
        codes = zeros(200, encoder.num_kv_heads, encoder.words)
        scales = None
        if encoder.scale_bits:
            scales = zeros(200, encoder.num_kv_heads, dtype=encoder.scale_dtype)
        encoder.to("cpu", dtype)._launch_keys(k, codes, torch.arange(tokens), scales)


def run_queries(encoder, dtype: torch.dtype) -> None:
    """A decoding step's queries, as a slice of a fused projection."""
    heads, dim = encoder.num_kv_heads * encoder.group, encoder.head_dim
    for tokens in (1, 20):
        fused = torch.randn(tokens, (heads + 2) * dim).to(dtype)
        encoder.to("cpu", dtype)._launch_queries(fused[:, : heads * dim].unflatten(1, (heads, dim)))


def step_all() -> None:
    """A step's queries and keys in one launch: linear, and asymmetric with one and two stages."""
    for tokens, heads, group, dim, bits, scale_dtype in (
        (8, 8, 4, 128, 128, None), (1, 3, 3, 64, 96, None), (8, 32, 1, 128, 128, None),
        (8, 4, 7, 128, 256, None), (4, 2, 2, 256, 64, None), (40, 2, 4, 128, 128, torch.uint8),
        (20, 2, 3, 96, 256, torch.int16),
    ):  # fmt: skip
        q, k = zeros(tokens, heads * group, dim, dtype=BF16), zeros(tokens, heads, dim, dtype=BF16)
        stored = {"codes": zeros(99, heads, bits // 32), "slots": zeros(tokens)}
        if scale_dtype:
            steps = zeros(heads, dtype=F32)
            stored |= {"scales": zeros(99, heads, dtype=scale_dtype), "scale_step": steps}
        weight, bias = zeros(heads, dim, bits, dtype=BF16), zeros(heads, bits, dtype=F32)
        encode_step_linear(q, k, weight, **stored)
        queries = (zeros(heads, group * dim, bits, dtype=BF16), bias)
        for residual in (None, zeros(heads, bits // 2, bits // 2, dtype=BF16)):
            keys = (weight, bias, residual)
            encode_step_asymmetric(q, k, *queries, *keys, planes=4, clip=2.5, **stored)


def rank_all() -> None:
    """Codes of several models, for contexts of 131072 tokens."""
    for heads, words, weights, scale_bits in (
        (8, 4, (1,) * 4, 0), (8, 4, (1, 2, 4, 8), 0), (8, 2, (1, 2, 4, 8), 0), (32, 4, (1,), 0),
        (32, 4, (1, 2, 4, 8), 0), (3, 3, (1,) * 3, 0), (8, 4, (1,) * 4, 8),
        (8, 8, tuple(2**plane for plane in range(8)), 16),
    ):  # fmt: skip
        scale_dtype = {8: torch.uint8, 16: torch.int16}.get(scale_bits)
        for k_max in (512, 2048):
            rank_triton(
                zeros(8, heads * len(weights), words),
                zeros(99, heads, words),
                zeros(8, 131072),
                zeros(8, dtype=torch.int64),
                zeros(8),
                plane_weights=weights,
                sink=16,
                recent=64,
                k_max=k_max,
                scales=zeros(99, heads, dtype=scale_dtype) if scale_bits else None,
                scale_bits=scale_bits,
            )


def shared_all() -> None:
    """Tiles of 16 to 1024 tokens, one to eight words, scales; and what finds rows and groups."""
    for heads, words, weights, scale_bits in (
        (8, 4, (1, 2, 4, 8), 0), (8, 4, (1,) * 4, 8), (8, 8, (1, 2, 4, 8), 0), (64, 4, (1, 2), 0),
        (4, 2, (1, 2, 4, 8), 16), (2, 3, (3, 1), 0), (1, 4, (1,) * 4, 0), (3, 1, (1,), 0),
    ):  # fmt: skip
        scale_dtype = {8: torch.uint8, 16: torch.int16}.get(scale_bits)
        rank_triton(
            zeros(32, heads * len(weights), words),
            zeros(99, heads, words),
            zeros(32, 131072),
            zeros(32, dtype=torch.int64),
            zeros(32),
            plane_weights=weights,
            sink=16,
            recent=64,
            k_max=512,
            scales=zeros(99, heads, dtype=scale_dtype) if scale_bits else None,
            scale_bits=scale_bits,
            groups=RowGroups(32, 131072, torch.device("cpu")),
        )
    for rows_dtype, shares in ((torch.int64, [(15600000, 20, 4096)]), (torch.int32, [])):
        run_copies((131072,), rows_dtype, shares)
    for rows in (4, 32, 256):
        groups = RowGroups(rows, 131072, torch.device("cpu"))
        group_rows_triton(zeros(rows, 131072), zeros(rows), longest=131072, groups=groups)


def score_all() -> None:
    """Symmetric and asymmetric planes, with and without scales, int32 and int64 products."""
    for weights, words in (
        ((1,), 4), ((1,) * 3, 4), ((1,) * 4, 4), ((1,) * 16, 8), ((1, 2, 4, 8), 4), ((1, 2), 3),
        (tuple(2**p for p in range(8)), 8), ((3, 1, 5), 1),
    ):  # fmt: skip
        for scale_bits, scale_dtype in ((0, None), (8, torch.uint8), (16, torch.int16)):
            scales = zeros(99, 2, dtype=scale_dtype) if scale_bits else None
            score_triton(
                zeros(3, 2 * len(weights), words),
                zeros(99, 2, words),
                zeros(3, 700),
                zeros(3, dtype=torch.int64 if scale_bits else torch.int32),
                plane_weights=weights,
                sink=4,
                recent=16,
                out=zeros(3, 2, 600, dtype=score_dtype(weights, 32 * words, scale_bits)),
                scales=scales,
                scale_bits=scale_bits,
            )


def exact_all() -> None:
    """Every head size, groups of 1 to 16, the dtypes of a KV cache."""
    for dim, group, dtype in (
        (64, 3, BF16), (96, 7, F16), (128, 4, BF16), (256, 1, BF16), (256, 16, BF16),
        (128, 2, F32), (256, 5, F32),
    ):  # fmt: skip
        exact_score_triton(
            zeros(2, 2 * group, dim, dtype=dtype),
            zeros(50, 2, dim, dtype=dtype),
            zeros(2, 3000),
            zeros(2, dtype=torch.int64),
            scale=0.1,
            sink=4,
            recent=16,
            out=zeros(2, 2, 3000, dtype=F32),
        )


def select_all() -> None:
    """Counting select for few and many levels; the helper of FlashInfer's; pages."""
    for weights, bits in (((1,) * 3, 128), ((1, 2, 4, 8), 128), ((1,) * 8, 256), ((1,), 32)):
        select_triton(
            zeros(2, 3, 9000, dtype=score_dtype(weights, bits)),
            zeros(2, 9100),
            zeros(2, dtype=torch.int64),
            zeros(2),
            k_max=300,
            levels=score_levels(weights, bits),
        )
    _repeat_rows_kernel[(1,)](zeros(4), zeros(32), zeros(32), 32, HEADS=8)
    write_pages(zeros(2, 3, 40), zeros(7), zeros(240))


def attend_all() -> None:
    """Every head size, groups of 1 to 64, fp8 caches, soft caps; few rows split and many whole."""
    for dim, group, dtype, cache_dtype, logit_cap, batch in (
        (128, 4, BF16, BF16, 0, 1), (64, 1, F16, F16, 0, 200), (96, 7, BF16, BF16, 30, 2),
        (256, 2, BF16, BF16, 50, 2), (256, 32, BF16, BF16, 0, 2), (128, 64, F16, F16, 30, 2),
        (256, 64, BF16, BF16, 50, 200), (128, 4, BF16, FP8, 0, 2), (256, 2, F16, FP8, 50, 2),
        (256, 32, BF16, FP8, 0, 200), (256, 64, F16, FP8, 50, 200),
    ):  # fmt: skip
        caches = (zeros(50, 2, dim, dtype=cache_dtype) for _ in range(2))
        attend_gather(
            zeros(batch, 2 * group, dim, dtype=dtype),
            *caches,
            zeros(batch, 2, 1024),
            zeros(batch, dtype=torch.int64 if batch == 2 else torch.int32),
            zeros(batch),
            scale=0.1,
            logit_cap=logit_cap,
        )


def dense_all() -> None:
    """Every head size, groups of 1 to 64, soft caps; few rows, and more than a program takes."""
    for batch, group, dim, dtype, logit_cap in (
        (32, 4, 128, BF16, 0), (8, 4, 128, BF16, 0), (1, 4, 128, BF16, 0), (128, 3, 64, BF16, 0),
        (32, 1, 128, BF16, 0), (16, 7, 96, F16, 0), (32, 7, 128, F16, 30), (16, 4, 256, BF16, 50),
        (9, 64, 256, BF16, 50), (32, 64, 128, BF16, 0), (64, 3, 96, BF16, 30),
    ):  # fmt: skip
        attend_dense_triton(
            zeros(batch, 2 * group, dim, dtype=dtype),
            *(zeros(50, 2, dim, dtype=dtype) for _ in range(2)),
            zeros(batch, 1024),
            zeros(batch, dtype=torch.int64 if batch == 32 else torch.int32),
            RowGroups(batch, 1024, torch.device("cpu")),
            scale=0.1,
            logit_cap=logit_cap,
        )


def lengths_all() -> None:
    """No request compiles anything, whatever its length: `warm_encoders`, captured and eager steps.

    All that a server launches between the captures of two batch sizes, and the lengths that come.
    """
    for encoder in (*linear_and_asymmetric(), mlp().to("cpu", BF16)):
        few, many = (
            new_binaries(run_prompts, encoder, tokens)
            for tokens in (PROMPTS, (1, 2, 15, 17, 32, 33, 100, 4096, 8191, 8192))
        )
        assert len(few) > 0
        assert many <= few, (encoder, many - few)
    groups = RowGroups(32, 131072, torch.device("cpu"))
    # SGLang captures with contexts of one token.
    captured, replayed = (
        new_binaries(run_groups, groups, lengths) for lengths in ((1,), (700, 5000, 65536, 131072))
    )
    assert len(captured) == 2
    assert captured == replayed
    captured, replayed = (
        new_binaries(run_copies, lengths) for lengths in ((1,), (700, 5000, 65536, 131072))
    )
    assert len(captured) == 1
    assert captured == replayed
    # What takes in tiles by powers of two is compiled for each of these.
    doubled, others = (
        new_binaries(run_eager, lengths)
        for lengths in ((3, 32768, 65536, 131072), (700, 16384, 16385, 40000, 100001, 131072))
    )
    assert len(doubled) == 4 + 4  # floor, filter and attention in two; take
    assert doubled == others


def new_binaries(run, *arguments) -> set[str]:
    """Compilations of a function's launches."""
    binaries.clear()
    run(*arguments)
    return set().union(*binaries.values())


def run_prompts(encoder, prompts) -> None:
    for tokens in prompts:
        # Keys as a slice of a fused projection.
        fused = zeros(tokens, (encoder.num_kv_heads + 5) * encoder.head_dim, dtype=BF16)
        k = fused[:, 3 * encoder.head_dim :][:, : encoder.num_kv_heads * encoder.head_dim]
        k = k.unflatten(1, (encoder.num_kv_heads, encoder.head_dim))
        codes = zeros(99, encoder.num_kv_heads, encoder.words)
        encoder._launch_keys(k, codes, zeros(tokens, dtype=torch.int64), None)


def run_groups(groups: RowGroups, lengths) -> None:
    for longest in lengths:
        group_rows_triton(zeros(32, 131072), zeros(32), longest=longest, groups=groups)


def run_copies(lengths, rows_dtype=torch.int64, shares=((15600000, 20, 4096),)) -> None:
    for longest in lengths:
        copy_rows_triton(
            zeros(40, 131072 + 8),
            zeros(8, dtype=rows_dtype),
            zeros(8, dtype=torch.int64),
            longest=longest,
            shares=shares,
            token_slots=zeros(9, 131072),
            lengths=zeros(9),
            budgets=zeros(len(shares), 9),
        )


def run_eager(lengths) -> None:
    for longest in lengths:
        width = eager_width(longest, 131072)
        where = (zeros(8, width), zeros(8), zeros(8))
        codes = (zeros(8, 32, 4), zeros(99, 8, 4))
        options = {"plane_weights": (1, 2, 4, 8), "sink": 16, "recent": 64, "k_max": 2048}
        slots = rank_triton(*codes, *where, **options)
        caches = (zeros(50, 8, 128, dtype=BF16) for _ in range(2))
        attend_gather(zeros(8, 32, 128, dtype=BF16), *caches, slots, *where[1:], scale=0.1)


if __name__ == "__main__":
    triton.runtime.driver.set_active(Driver())
    JITFunction.run = compile_only(JITFunction.run)
    for part in (
        encode_all, step_all, rank_all, shared_all, score_all, exact_all, select_all, attend_all,
        dense_all, lengths_all,
    ):  # fmt: skip
        part()
    print(*sorted(set(compiled)), len(compiled))
