"""The true attention scores: the ceiling of every selection, which reads all keys."""

from hata_sglang.methods.base import Method

METHOD = Method(
    name="exact",
    ranks="scores",
    summary="the true attention scores, the ceiling of every selection",
)
