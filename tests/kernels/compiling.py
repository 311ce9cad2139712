"""Triton's launches as compilations for a GPU that need not be there: an H100."""

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

from hata_kernels.attend import api
from hata_kernels.rank.buffers import Tiling
from hata_kernels.score import exact, exact_triton
from hata_kernels.score.scoring import Scoring

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
SHARED_MEMORY = 227 * 1024  # of one block on an H100
# Kernels were measured with this release, and fitted into registers; with others some bytes spill.
FITTED = triton.__version__.startswith("3.6.")
# Bytes of local memory that a thread may use, by kernel; none elsewhere.
SPILLS = {
    "_count_kernel": 512,  # its histogram of 4096 bins
    # Kept to 128 registers, so that 16 warps are in flight; nothing of its inner loop is spilled.
    "shared_kernel": 40,
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
        if self.__name__ == "filter_kernel":
            check_lanes(shared, **kwargs)
            check_counts(kernel.asm["ttgir"], **kwargs)
        if self.__name__ == "shared_kernel":
            unpacked = re.search(r"tt\.reshape .*xi8, #.* -> .*opIdx = 1", kernel.asm["ttgir"])
            assert unpacked, "bits are not unpacked where tensor cores take them"
        compiled.append(self.__name__)
        binaries.setdefault(self.__name__, set()).add(kernel.hash)
        if "-v" in sys.argv:
            seconds = time.time() - start
            print(f"{seconds:5.1f} s  {self.__name__}  shared {shared}  spilled {spilled}")

    return warm_up


def filter_spills(*, SCORING: Scoring, TILING: Tiling, **_) -> int:
    """Bytes that the filter may spill (`filter_limits`)."""
    # Eight planes, scales of 16 bits: products of 64 bits. No shipped set has these.
    if SCORING.wide:
        return 752
    if SCORING.biased:
        return 128  # where tokens of a tile are in several half octaves
    if SCORING.scale_bits:
        return 72
    if TILING.sections > 1 and SCORING.heads < 4:
        return 24
    return 176 if SCORING.words < SCORING.words_pow2 else 0  # words are loaded one by one


def check_lanes(shared: int, *, SCORING: Scoring, LANES: int, **_) -> None:
    """Threads of the filter have a lane each, and hand on no more than a number of it."""
    # Words that are loaded one by one, and few heads, whose runs are summed over warps, take more.
    if SCORING.words == SCORING.words_pow2 and SCORING.heads >= 4:
        assert shared <= 4 * LANES, f"filter_kernel: scores move between threads, {shared} bytes"


def check_counts(ttgir: str, *, TILING: Tiling, **_) -> None:
    """Where candidates are counted, no two threads have the same score."""
    if TILING.sections == 1:
        return
    count = next(line for line in ttgir.splitlines() if "red.relaxed" in line)
    # Words are summed over a dimension: a slice of a layout, but for codes of one word.
    found = re.search(r"tensor<\d+x\d+xi32, (?:#ttg\.slice<\{dim = (\d), parent = )?(#\w+)", count)
    dim, name = found.groups()
    layout = re.search(rf"^{name} = #ttg\.(.*)$", ttgir, re.MULTILINE).group(1)
    if layout.startswith("blocked"):
        spread = re.findall(r"(?:threadsPerWarp|warpsPerCTA) = \[([\d, ]*)\]", layout)
        assert dim is None or all(part.split(", ")[int(dim)] == "1" for part in spread), layout
    else:
        bases = re.search(r"lane = (.*), block", layout).group(1)
        for basis in re.findall(r"\[(\d[\d, ]*)\]", bases):
            numbers = [int(number) for number in basis.split(", ")]
            assert any(numbers), layout
            assert dim is None or numbers[int(dim)] == 0, layout


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


def start() -> None:
    """From here on a launch compiles, and no more, and CPU tensors are launched for."""
    api.gather_reference, api.dense_reference = api.launch_gather, api.launch_dense
    exact.exact_reference = exact_triton.launch_exact
    triton.runtime.driver.set_active(Driver())
    JITFunction.run = compile_only(JITFunction.run)
