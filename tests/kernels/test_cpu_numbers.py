"""Compiled helpers: numbers of every size from and to words, the exponential, and the cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numba import njit

import hata_kernels.cpu.compiling as compiling
from hata_kernels.cpu.compiling import FLAGS, KINDS, compiled
from hata_kernels.cpu.numbers import exp, load, popcount, store


@njit(**FLAGS)
def exponentials(x, out):
    for i in range(len(x)):
        out[i] = exp(x[i])


@njit(**FLAGS)
def popcounts(x, out):
    for i in range(len(x)):
        out[i] = popcount(x[i])


def words(numbers: torch.Tensor) -> np.ndarray:
    """Numbers ``[n]`` as one row and head of words."""
    return numbers.view(torch.uint16).numpy()[None, None]


def every_half(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_half_is_loaded_and_stored(dtype) -> None:
    numbers, out = every_half(dtype), np.empty(2**16, np.float32)
    load(words(numbers), 0, 0, KINDS[dtype], out)
    expected = numbers.float()
    assert torch.equal(torch.from_numpy(out).nan_to_num(7), expected.nan_to_num(7))
    assert np.array_equal(np.isnan(out), expected.isnan().numpy())
    back = np.empty(2**16, np.uint16)
    store(out, KINDS[dtype], back)
    whole = ~expected.isnan()
    assert torch.equal(
        torch.from_numpy(back.view(np.int16))[whole], numbers.view(torch.int16)[whole]
    )
    assert torch.from_numpy(back.view(np.int16)).view(dtype)[~whole].isnan().all()


@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_numbers_are_rounded_as_pytorch_does(dtype) -> None:
    bits = torch.randint(-(2**31), 2**31, (200_000,), dtype=torch.int32)
    ties = (
        torch.randint(-(2**15), 2**15, (50_000,), dtype=torch.int32) << 12
    )  # halves, and quarters
    ends = torch.tensor([0.0, -0.0, 65504.0, 65519.99, 65520.0, 1e-8, 6e-8, 2.0**-25, float("inf")])
    numbers = torch.cat([bits.view(torch.float32), ties.view(torch.float32), ends, -ends])
    expected = numbers.to(dtype)
    out = torch.empty_like(expected)
    store(numbers.numpy(), KINDS[dtype], words(out)[0, 0])
    assert torch.equal(out.isnan(), numbers.isnan())
    same = torch.int16 if dtype != torch.float32 else torch.int32
    real = ~numbers.isnan()
    assert torch.equal(out[real].view(same), expected[real].view(same))
    again = np.empty(len(numbers), np.float32)
    load(words(out), 0, 0, KINDS[dtype], again)
    assert np.array_equal(again[real], expected[real].float().numpy())


def test_exponentials() -> None:
    x = np.concatenate([np.linspace(-87, 88, 100_001), [0, -60, 1e-30]]).astype(np.float32)
    out = np.empty_like(x)
    exponentials(x, out)
    expected = np.exp(x.astype(np.float64))
    assert np.abs(out / expected - 1).max() < 2.5e-7
    assert out[-3] == 1


def test_popcounts() -> None:
    x = np.random.randint(0, 2**63, 1000, dtype=np.uint64) * np.uint64(2)
    out = np.empty(1000, np.int64)
    popcounts(x, out)
    assert out.tolist() == np.bitwise_count(x).tolist()


def test_without_a_folder_it_compiles_and_says_so(monkeypatch) -> None:
    from numba.core import caching

    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    with pytest.warns(RuntimeWarning, match="twice is compiled anew .* in NUMBA_CACHE_DIR"):

        @compiled("int64(int64)")
        def twice(x):
            return 2 * x

    assert twice(4) == 8
    with pytest.raises(TypeError, match="No matching definition"):
        twice("4")


PROGRAM = """
import sys
from importlib.util import module_from_spec, spec_from_file_location

# By its path: to import its package would compile the kernels.
spec = spec_from_file_location("compiling", sys.argv[1])
compiling = module_from_spec(spec)
spec.loader.exec_module(compiling)

@compiling.compiled("int64(int64)")
def twice(x):
    return 2 * x

print(twice(4), sum(twice.stats.cache_hits.values()), twice.stats.cache_path)
"""


def test_processes_share_the_cache(tmp_path) -> None:
    """Three that start together compile, or read what another wrote; a later one reads."""
    program, folder = tmp_path / "program.py", tmp_path / "cache"
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), compiling.__file__]
    env = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}

    def start():
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)

    for process in [start() for _ in range(3)]:
        result, _, where = process.communicate(timeout=120)[0].split()
        assert result == "8"
        assert Path(where).is_relative_to(folder)
    assert start().communicate(timeout=120)[0].split()[:2] == ["8", "1"]
    # A change of any file of the folder makes new names.
    (name,) = (path.name for path in folder.rglob("*.nbi"))
    assert compiling._DIGEST in name
