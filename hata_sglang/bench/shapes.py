"""What is timed: attention shapes of models, and scenarios."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Attention shape of one layer of a model.

    Attributes
    ----------
    name : str
    q_heads, kv_heads, dim : int
    """

    name: str
    q_heads: int
    kv_heads: int
    dim: int

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.q_heads // self.kv_heads


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("Llama-3.1-8B", 32, 8, 128),
        Shape("Qwen2.5-7B", 28, 4, 128),
        Shape("Llama-2-7B", 32, 32, 128),
        Shape("SmolLM2-135M", 9, 3, 64),
    )
}


@dataclass(frozen=True)
class Scenario:
    """One decode step of one layer.

    Attributes
    ----------
    shape : Shape
    batch, context : int
        Requests, and tokens of each.
    k : int
        Budget, tokens per KV head.
    method : str
        ``hata`` or ``asymmetric``.
    bits : int
        Per code.
    shared : int
        First tokens of every context that are the same ones: a document that all users share.
    """

    shape: Shape
    batch: int
    context: int
    k: int
    method: str = "asymmetric"
    bits: int = 128
    shared: int = 0

    def __str__(self) -> str:
        size = f"{self.batch} x {self.context // 1024}K, k {self.k}"
        if self.shared:
            size += f", {self.shared // 1024}K shared"
        return f"{self.shape.name} {size}, {self.method} {self.bits}"

    @property
    def tokens(self) -> int:
        """Tokens of all contexts together, each once."""
        return self.shared + self.batch * (self.context - self.shared)

    @property
    def code_bytes(self) -> int:
        """Bytes of a token's codes and of its slot."""
        return self.shape.kv_heads * self.bits // 8 + 4

    @property
    def bytes_read(self) -> dict[str, int]:
        """Bytes that a step cannot do without, by stage: codes and slots, then K and V kept."""
        rows = self.batch * self.shape.kv_heads
        return {
            "score": self.tokens * self.code_bytes,
            "attend": rows * min(self.k, self.context) * (2 * 2 * self.shape.dim + 4),
        }

    @property
    def buffers(self) -> tuple[str, int, int, int, str, int]:
        """Scenarios that agree in it can use the same layers: all but the budget."""
        return self.shape.name, self.batch, self.context, self.bits, self.method, self.shared

    @property
    def dense_bytes(self) -> int:
        """Bytes of K, V and slots that dense attention has to read."""
        return self.tokens * (2 * 2 * self.shape.kv_heads * self.shape.dim + 4)


def headline() -> Iterator[Scenario]:
    """The scenarios of the README, of both methods."""
    llama, mha = SHAPES["Llama-3.1-8B"], SHAPES["Llama-2-7B"]
    for method in ("asymmetric", "hata"):
        for batch, context, k in (
            (1, 32, 512),
            (8, 32, 512),
            (32, 32, 512),
            (1, 128, 2048),
            (8, 128, 2048),
        ):
            yield Scenario(llama, batch, context * 1024, k, method)
        yield Scenario(mha, 8, 32 * 1024, 512, method)
        for users in (32, 128):
            yield Scenario(llama, users, 97 * 1024, 1536, method, shared=96 * 1024)


def scaling() -> Iterator[Scenario]:
    """Lines against context, batch, budget and bits, and the other shapes.

    k is 1 / 64 of the context but for lines against the budget.
    """
    llama, kilo = SHAPES["Llama-3.1-8B"], 1024
    for bits in (128, 64):
        for batch, exponent in itertools.product((1, 8), range(3, 10)):
            context = 2**exponent * kilo
            yield Scenario(llama, batch, context, context // 64, bits=bits)
    for method, exponent in itertools.product(("asymmetric", "hata"), range(7)):
        yield Scenario(llama, 2**exponent, 32 * kilo, 512, method)
    for batch, k in itertools.product((1, 8), (512, 1024, 2048, 4096)):
        yield Scenario(llama, batch, 128 * kilo, k)
    for bits in (64, 128, 256):
        yield Scenario(llama, 8, 128 * kilo, 2048, bits=bits)
    for shape, batch, context in itertools.product(SHAPES.values(), (1, 8), (8 * kilo, 32 * kilo)):
        yield Scenario(shape, batch, context, context // 64)


def grid(
    shapes: Iterable[Shape],
    batches: Iterable[int],
    contexts: Iterable[int],
    budgets: Iterable[float],
    bits: Iterable[int],
    shared: Iterable[int],
    methods: Iterable[str],
) -> Iterator[Scenario]:
    """Every combination; a budget below 1 is a share of the context. Contexts are in tokens."""
    axes = (shapes, methods, bits, contexts, shared, budgets, batches)
    for shape, method, width, context, same, budget, batch in itertools.product(*axes):
        k = round(budget * context) if budget < 1 else int(budget)
        yield Scenario(shape, batch, context, k, method, width, same)
