"""Kernel tests: fresh seeds, poisoned outputs, and Triton's interpreter where there is no GPU."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator

import pytest
import torch

HAS_CUDA = torch.cuda.is_available()


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Where Triton kernels run: the interpreter, for the references, and with `-m gpu` the GPU."""
    if request.param == "cuda":
        return torch.device("cuda")
    if HAS_CUDA:
        pytest.skip("Triton's interpreter and compiler do not share a process")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    from hata_kernels.attend import api
    from hata_kernels.score import exact, exact_triton

    monkeypatch.setattr(api, "gather_reference", api.launch_gather)
    monkeypatch.setattr(api, "dense_reference", api.launch_dense)
    monkeypatch.setattr(exact, "exact_reference", exact_triton.launch_exact)
    return torch.device("cpu")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def any_device(request: pytest.FixtureRequest) -> torch.device:
    """Where plain PyTorch runs: the CPU, and with `-m gpu` the GPU."""
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def seed() -> int:
    """A fresh seed for every test; pytest shows the line when the test fails."""
    value = int(os.environ.get("HATA_TEST_SEED", secrets.randbits(31)))
    torch.manual_seed(value)
    print(f"seed {value}: repeat with HATA_TEST_SEED={value}")
    return value


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """`torch.empty` gives NaN and the largest integers: what a kernel leaves unwritten shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(1, dtype=torch.int32).item() == torch.iinfo(torch.int32).max
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def poison() -> Callable[..., torch.Tensor]:
    """Make buffers full of a value that no kernel writes: NaN, or an odd negative integer."""

    def make(*shape: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> torch.Tensor:
        value = float("nan") if dtype.is_floating_point else -987654321
        return torch.full(shape, value, dtype=dtype, device=device)

    return make


@pytest.fixture
def make_token_slots() -> Callable[..., torch.Tensor]:
    """Make page tables: shuffled slots, a prefix shared by all rows, garbage after the lengths."""

    def make(lengths: list[int], width: int, slots: int) -> torch.Tensor:
        table = torch.randint(-(2**31), 2**31, (len(lengths), width), dtype=torch.int32)
        shared = torch.randperm(slots - 1)[: min(lengths) // 2] + 1
        for row, length in enumerate(lengths):
            table[row, :length] = (torch.randperm(slots - 1)[:length] + 1).int()
            table[row, : len(shared)] = shared.int()
        return table

    return make
