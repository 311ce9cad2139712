"""Kernels compile for a GPU, on any machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = {
    "_add_kernel", "_asymmetric_step_kernel", "_copy_rows_kernel", "_dense_merge_kernel",
    "_encode_kernel", "_exact_score_kernel", "_groups_kernel", "_linear_step_kernel",
    "_merge_kernel", "_pages_kernel", "_part_kernel", "_partial_kernel", "_planes_kernel",
    "_prefix_kernel", "_repeat_rows_kernel", "_residual_kernel", "_same_kernel", "_sum_kernel",
    "_tail_kernel", "filter_kernel", "floor_kernel", "shared_kernel", "take_kernel",
}  # fmt: skip


@pytest.mark.slow
def test_every_kernel_compiles_for_an_h100() -> None:
    # In a process of its own: this one may have imported Triton with its interpreter.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_kernels.py")
    result = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert set(result.stdout.split()[:-1]) == KERNELS
