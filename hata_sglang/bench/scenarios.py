"""What ``hata-sglang bench op`` times: one decode step of one layer, by scenario."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from hata_sglang.bench.shapes import SHAPES, Shape

KILO = 1024
METHODS = ("asymmetric", "hata")


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
        size = f"{self.batch} x {self.context // KILO}K, k {self.k}"
        if self.shared:
            size += f", {self.shared // KILO}K shared"
        return f"{self.shape.name} {size}, {self.method} {self.bits}"

    @property
    def tokens(self) -> int:
        """Tokens of all contexts together, each once."""
        return self.shared + self.batch * (self.context - self.shared)


def headline() -> list[Scenario]:
    """The sizes of the README with both methods; narrow codes."""
    llama, mha = SHAPES["llama-3.1-8b"], SHAPES["llama-2-7b"]
    sizes = [(1, 32 * KILO, 512), (1, 128 * KILO, 2048), (8, 32 * KILO, 512), (8, 128 * KILO, 2048)]
    wide = [*sizes, (32, 32 * KILO, 512)]
    return [
        *(Scenario(llama, *size, method) for method in METHODS for size in wide),
        *(Scenario(llama, *size, bits=64) for size in sizes),
        *(Scenario(mha, 8, 32 * KILO, 512, method) for method in METHODS),
        *(Scenario(mha, 8, 32 * KILO, 512, bits=bits) for bits in (64, 32)),
        *(
            Scenario(llama, users, 97 * KILO, 1536, method, shared=96 * KILO)
            for users, method in product((32, 128), METHODS)
        ),
    ]


def scaling() -> list[Scenario]:
    """Lines against context, batch, budget and bits, and the other shapes.

    k is 1 / 64 of the context but for lines against the budget.
    """
    llama, contexts = SHAPES["llama-3.1-8b"], [2**i * KILO for i in range(3, 10)]
    others = [SHAPES[name] for name in ("qwen2.5-7b", "llama-2-7b", "smollm2-135m")]
    made = [
        *(
            Scenario(llama, batch, context, context // 64, bits=bits)
            for bits, batch, context in product((128, 64), (1, 8), contexts)
        ),
        *(
            Scenario(llama, 2**i, 32 * KILO, 512, method)
            for method, i in product(METHODS, range(7))
        ),
        *(
            Scenario(llama, batch, 128 * KILO, k)
            for batch, k in product((1, 8), (512, 1024, 2048, 4096))
        ),
        *(Scenario(llama, batch, 128 * KILO, 2048, bits=256) for batch in (1, 8)),
        *(
            Scenario(shape, batch, context, context // 64)
            for shape, batch, context in product(others, (1, 8), (8 * KILO, 32 * KILO))
        ),
    ]
    return list(dict.fromkeys(made))


PRESETS = {"headline": headline, "scaling": scaling}
