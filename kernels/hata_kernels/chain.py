"""Launches that overlap: a kernel begins before the one that it follows has ended.

On Hopper and later a kernel may say early that the next one can start (programmatic dependent
launch): its programs are placed and read what no launch of the chain writes, and wait where they
need the last one's results. Between kernels of a few microseconds that hides most of a launch.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

if TYPE_CHECKING:
    from triton.compiler import CompiledKernel

#: CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT of cuda.h: percent for shared memory.
CARVEOUT = 9

#: Off: kernels run one after the other, so that a profiler sees what each takes by itself.
ENABLED = True

_WITH_MOST_CACHE: set[int] = set()


def chain_options(device: torch.device) -> dict[str, bool]:
    """Launch options of a kernel that chains, where a device can: compute capability 9.0 and up."""
    if ENABLED and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0):
        return {"PDL": True, "launch_pdl": True}
    return {"PDL": False}


def most_cache(kernel: CompiledKernel | None) -> None:
    """Let a kernel that was launched have an SM's memory as cache, from its next launch on.

    An SM splits its memory between cache and shared memory, and waits until it is empty to split
    it another way: kernels overlap only where they agree. Triton leaves the split to the driver,
    which chooses by a kernel's shared memory alone.
    """
    function = getattr(kernel, "function", None)  # None in Triton's interpreter
    if function is not None and function not in _WITH_MOST_CACHE:
        cuda = ctypes.CDLL("libcuda.so.1")
        error = cuda.cuFuncSetAttribute(ctypes.c_void_p(function), CARVEOUT, 0)
        assert error == 0, f"cuFuncSetAttribute: CUDA error {error}"
        _WITH_MOST_CACHE.add(function)


@triton.jit
def start_next(PDL: tl.constexpr):
    """Let the launch that follows start; it must call `wait_for_last` before it relies on ours."""
    if PDL:
        gdc_launch_dependents()


@triton.jit
def wait_for_last(PDL: tl.constexpr):
    """Wait for the end of the launch before, and with it of all before that one."""
    if PDL:
        gdc_wait()
