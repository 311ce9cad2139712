"""Let SGLang run on a machine that has no CUDA driver.

`sgl_kernel` loads a compiled library at import and fails without `libcuda`. Its loader's last
resort is a plain ``import common_ops`` (sgl_kernel/load_utils.py), so an empty module of that
name is enough for the import; nothing on SGLang's CPU path with the ``torch_native`` backend
calls into it. `SGLANG_USE_CPU_ENGINE=1` makes SGLang take that path.

Spawned children import the launcher's main module first, so calling `enable` at the top of the
launcher covers them too.
"""

from __future__ import annotations

import ctypes
import os
import sys
import types


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
    """Prepare this process, and its children through the environment, for SGLang on a CPU.

    Does nothing where a CUDA device is there.

    Returns
    -------
    bool
        True if the process was prepared, False if it has a CUDA device.
    """
    if has_cuda_driver():
        return False
    placeholder = types.ModuleType("common_ops")
    placeholder.__file__ = __file__  # the loader logs it
    sys.modules.setdefault("common_ops", placeholder)
    os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
    return True
