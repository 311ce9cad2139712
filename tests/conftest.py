"""What every test relies on: no network, no settings of the caller, a fixed random search."""

from __future__ import annotations

import importlib.util
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import settings

# Before any test module imports a library that reads them.
os.environ["HF_HUB_OFFLINE"] = "1"
for variable in ("HATA_CONFIG", "HATA_SGLANG_ACTIVE"):
    os.environ.pop(variable, None)

# Derandomised: a red test is red again on the next run. No deadline: CI has two busy cores.
settings.register_profile("hata", deadline=None, derandomize=True)
settings.load_profile("hata")

REPO_ROOT = Path(__file__).resolve().parents[1]


import prompts  # noqa: E402
import validation  # noqa: E402


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The checkout that the tests lie in."""
    return REPO_ROOT


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """Folder of the demo model."""
    from hata_sglang.demo.model import ensure_demo_model

    return ensure_demo_model()


@pytest.fixture(scope="session")
def demo_tokenizer(demo_model):
    """The tokenizer of a real model: tokens are parts of words, and counting them takes time."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(demo_model)


@pytest.fixture(scope="session")
def make_prompt(demo_tokenizer):
    """Function of (tokens, seed): that many ids of prose."""

    def make(tokens: int, seed: int) -> list[int]:
        text = " ".join(islice(prompts.sentences(seed), tokens // 8 + 8))
        return demo_tokenizer(text, add_special_tokens=False)["input_ids"][:tokens]

    return make


@pytest.fixture(scope="session")
def bounded() -> Callable[..., AbstractContextManager[None]]:
    """Run a block within 10 seconds of processor time and 1 GB of memory more than there is now."""

    @contextmanager
    def bounded(seconds: float = 10, memory: int = 2**30) -> Iterator[None]:
        def stop(*_: object) -> None:
            pytest.fail(f"took more than {seconds} s")

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limits = resource.getrlimit(resource.RLIMIT_AS)
        # Not SIGALRM, which is pytest-timeout's.
        before = signal.signal(signal.SIGPROF, stop)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory, limits[1]))
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            resource.setrlimit(resource.RLIMIT_AS, limits)
            signal.signal(signal.SIGPROF, before)

    return bounded


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--validation``."""
    parser.addoption(
        "--validation",
        metavar="FILE",
        type=Path,
        help="add rows of what this run has shown, such as to docs/validation.csv",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Load Triton's interpreter before any test module can import Triton without it.

    Only where the kernels' tests are to be collected: the others are as users run them.
    """
    if path := config.getoption("--validation"):
        config.pluginmanager.register(validation.Recorder(path.resolve()))
    kernels = REPO_ROOT / "tests" / "kernels"
    asked = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    if any(path == kernels or path in kernels.parents or kernels in path.parents for path in asked):
        source = kernels / "interpreted_triton.py"
        spec = importlib.util.spec_from_file_location(source.stem, source)
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `gpu` tests, where they were asked for, on a machine without a GPU."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
