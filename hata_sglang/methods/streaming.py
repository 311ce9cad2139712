"""The first and last tokens alone."""

from hata_sglang.methods.base import Method

METHOD = Method(
    name="streaming",
    ranks="positions",
    summary="the first and last tokens alone (StreamingLLM)",
    paper="https://arxiv.org/abs/2309.17453",
)
