"""Let SGLang run on a machine that has no CUDA driver.

`sgl_kernel` loads a compiled library at import and fails without `libcuda`. Its loader's last
resort is a plain ``import common_ops`` (sgl_kernel/load_utils.py), so an empty module of that
name on the path is enough for the import; nothing on SGLang's CPU path with the ``torch_native``
backend calls into it. Processes that SGLang spawns get `sys.path` and the environment of the one
that spawned them, so preparing that one prepares all.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

#: Holds the empty module.
PLACEHOLDER_FOLDER = str(Path(__file__).with_name("without_driver"))
#: Of torch. SGLang and llguidance decorate a few small functions of sampling with `torch.compile`:
#: repetition penalties, grammars' masks, seeded sampling. On a CPU the first request that needs one
#: would wait for a C++ compiler, and all others with it, to save a small part of a step.
NO_COMPILER = "TORCH_COMPILE_DISABLE"
#: Set for this process and those it spawns, unless the user set them. With the first one SGLang
#: takes its CPU path.
ENVIRONMENT = {"SGLANG_USE_CPU_ENGINE": "1", NO_COMPILER: "1"}


def has_cuda_driver() -> bool:
    """Say whether the CUDA driver library can be loaded and reports at least one device."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return (
        driver.cuInit(0) == 0
        and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
        and count.value > 0
    )


def enable() -> bool:
    """Prepare this process, and those that it will spawn, for SGLang on a CPU.

    Does nothing where a CUDA device is there. May be called at any time before `sgl_kernel` is
    imported or processes are spawned, and more than once.

    Returns
    -------
    bool
        True if the process was prepared, False if it has a CUDA device.
    """
    if has_cuda_driver():
        return False
    if PLACEHOLDER_FOLDER not in sys.path:
        sys.path.append(PLACEHOLDER_FOLDER)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return True
