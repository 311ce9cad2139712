"""Compile what prompts need before the first one comes."""

from __future__ import annotations

import torch
from rich.console import Console
from rich.progress import track

from hata_sglang.decoding.codebook import CodeBook

#: Tokens of a prompt, or of a piece of one, by which kernels differ: tiles of 16, 32, and 64.
PROMPTS = (16, 32, 64)


def warm_encoders(book: CodeBook, dtype: torch.dtype) -> None:
    """Encode keys of every kind of layer once for every kind of prompt, with a progress bar.

    Triton compiles a kernel at its first launch, for seconds. The launches of decode steps are
    compiled where SGLang captures its CUDA graphs, those of prompts would be by a request.

    Parameters
    ----------
    book : CodeBook
        On a GPU; the reserved slot 0 is written.
    dtype : torch.dtype
        Of the keys.
    """
    kinds = {}
    for layer, encoder in book.encoders.items():
        kind = (type(encoder), encoder.bits, *encoder.options().items())
        kinds.setdefault(kind, (layer, encoder))
    calls = [(*kind, tokens) for kind in kinds.values() for tokens in PROMPTS]
    console = Console(stderr=True)
    for layer, encoder, tokens in track(calls, "hata: compiling for prompts", console=console):
        where = book.codes[layer].device
        encoder.encode_keys(
            torch.zeros(tokens, encoder.num_kv_heads, encoder.head_dim, dtype=dtype, device=where),
            codes=book.codes[layer],
            slots=torch.zeros(tokens, dtype=torch.int64, device=where),
            scales=book.scales.get(layer),
        )
