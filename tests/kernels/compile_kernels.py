"""Compile every kernel for a GPU that need not be there; run by test_compile.py on its own.

Each wrapper is called as a server calls it, on CPU tensors, with Triton's launches turned into
compilations for compute capability 9.0 by the real compiler and ptxas. The tests that run kernels
without a GPU use Triton's interpreter, which takes more than the compiler does.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from hata_kernels.attend.triton import write_pages
from hata_kernels.encode.triton import encode_triton
from hata_kernels.encode.triton_residual import encode_residual_triton
from hata_kernels.encoders import AsymmetricEncoder, LinearEncoder, MlpEncoder
from hata_kernels.score import score_dtype, score_levels
from hata_kernels.score.exact_triton import exact_score_triton
from hata_kernels.score.triton import score_triton
from hata_kernels.select.flashinfer_topk import _rows_kernel
from hata_kernels.select.triton import select_triton

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
SHARED_MEMORY = 227 * 1024  # of one block on an H100
compiled: list[str] = []


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
        if "PTX" in kwargs:
            kwargs["PTX"] = True  # the wrapper chose by the tensors' device
        assert len(grid) <= 3, grid
        assert all(type(size) is int and 0 < size < 2**16 for size in grid), grid
        start = time.time()
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        assert b".target sm_90" in kernel.asm["ptx"].encode()
        assert len(kernel.asm["cubin"]) > 0
        shared = kernel.metadata.shared
        assert shared <= SHARED_MEMORY, f"{self.__name__}: {shared} bytes of shared memory"
        spilled = stack_bytes(kernel.asm["cubin"])
        spills = self.__name__ == "_count_kernel"  # its histogram of 4096 bins
        assert spilled == 0 or spills, f"{self.__name__}: {spilled} bytes of registers spilled"
        compiled.append(self.__name__)
        if "-v" in sys.argv:
            seconds = time.time() - start
            print(f"{seconds:5.1f} s  {self.__name__}  shared {shared}  spilled {spilled}")

    return warm_up


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
    sizes = ((128, 128), (128, 128), (128, 32))
    mlp = {}
    for side in ("key", "query"):
        for n, (size, out) in enumerate(sizes):
            mlp[f"{side}.{n}.weight"] = torch.randn(4, size, out)
            mlp[f"{side}.{n}.bias"] = torch.randn(4, out)
    encoder = MlpEncoder.from_tensors(mlp, num_kv_heads=2, group=2, head_dim=128)
    run_keys(encoder)
    run_queries(encoder.to("cpu", BF16), BF16)


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
    _rows_kernel[(1,)](zeros(4), zeros(32), zeros(32), 32, HEADS=8)
    write_pages(zeros(2, 3, 40), zeros(7), zeros(240))


if __name__ == "__main__":
    triton.runtime.driver.set_active(Driver())
    JITFunction.run = compile_only(JITFunction.run)
    for part in (encode_all, score_all, exact_all, select_all):
        part()
    print(*sorted(set(compiled)), len(compiled))
