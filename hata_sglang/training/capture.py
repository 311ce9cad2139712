"""Capturing queries and keys of a model, after RoPE, to disk.

The model is not patched: transformers lets callers register an attention
function by name, and hands it q and k exactly as attention uses them. Ours
writes them down and calls the stock SDPA function.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hata_sglang.errors import HataError
from hata_sglang.training.data import TokenSequence

ATTENTION_NAME = "hata_capture"


class _EnoughLayers(Exception):
    """Ends a forward pass whose remaining layers nobody asked for."""


@dataclass(frozen=True)
class Capture:
    """Queries and keys of one layer on one sequence.

    Attributes
    ----------
    q : torch.Tensor
        ``[N, Hq, D]``, queries at the sampled positions, after RoPE.
    k : torch.Tensor
        ``[S, Hkv, D]``, keys of all positions, after RoPE.
    positions : torch.Tensor
        ``[N]`` int64, rising; query ``n`` sees keys ``0 .. positions[n]``.
    scale : float
        What the model multiplies q.k with before softmax.
    """

    q: torch.Tensor
    k: torch.Tensor
    positions: torch.Tensor
    scale: float


@dataclass(frozen=True)
class Sampling:
    """Which positions of a sequence give queries.

    Parameters
    ----------
    queries : int
        Per sequence.
    tail_queries : int
        How many of them come from the last `tail` positions: a chat's answers,
        where decoding happens. The others come from the whole second half
        (HATA, arXiv 2506.02572: queries that see enough keys).
    tail : int
        Length of that end, in tokens.
    """

    queries: int = 256
    tail_queries: int = 128
    tail: int = 512

    def positions(self, length: int, generator: torch.Generator) -> torch.Tensor:
        """Sample positions of a sequence of `length` tokens, rising and without repeats.

        Returns
        -------
        torch.Tensor
            Int64 ``[min(queries, length - length // 2)]``.
        """
        half = length // 2
        tail_start = max(half, length - self.tail)
        tail = tail_start + torch.randperm(length - tail_start, generator=generator)
        tail = tail[: self.tail_queries]
        rest = half + torch.randperm(length - half, generator=generator)
        rest = rest[~torch.isin(rest, tail)][: max(0, self.queries - len(tail))]
        return torch.cat([tail, rest])[: self.queries].sort().values


class CaptureStore:
    """A folder of captures: ``layer-LLL/sequence-SSS.safetensors``.

    Parameters
    ----------
    folder : Path
        Made if missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, layer: int, sequence: int) -> Path:
        """File of one layer and sequence."""
        return self.folder / f"layer-{layer:03d}" / f"sequence-{sequence:03d}.safetensors"

    def write(self, layer: int, sequence: int, capture: Capture) -> None:
        """Store one capture; q and k as bfloat16, which is what a KV cache keeps."""
        path = self.path(layer, sequence)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {
                "q": capture.q.to(torch.bfloat16).contiguous(),
                "k": capture.k.to(torch.bfloat16).contiguous(),
                "positions": capture.positions,
                "scale": torch.tensor(capture.scale, dtype=torch.float64),
            },
            path,
        )

    def read(self, layer: int, sequence: int) -> Capture:
        """Load one capture, q and k as float32."""
        tensors = load_file(self.path(layer, sequence))
        return Capture(
            tensors["q"].float(),
            tensors["k"].float(),
            tensors["positions"],
            float(tensors["scale"]),
        )


@contextmanager
def recording(model: Any, write: Any, *, values: bool = False) -> Iterator[None]:
    """Have `model` report q and k, or q, k and v, of every attention layer.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Its attention implementation is put back afterwards.
    write : callable
        Called as ``write(layer, q, k, scale)`` with q ``[B, Hq, S, D]`` and k
        ``[B, Hkv, S, D]`` after RoPE; with `values` as ``write(layer, q, k, v, scale)``, with v
        ``[B, Hkv, S, D]``.
    values : bool, default False
        Whether to report v too.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def attention(module, query, key, value, attention_mask, **kwargs):
        scaling = kwargs.get("scaling")
        reported = (query, key, value) if values else (query, key)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        write(module.layer_idx, *reported, scale)
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    before = model.config._attn_implementation
    AttentionInterface.register(ATTENTION_NAME, attention)
    AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
    model.set_attn_implementation(ATTENTION_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@torch.inference_mode()
def capture_sequences(
    model: Any,
    sequences: Sequence[TokenSequence],
    store: CaptureStore,
    layers: Sequence[int],
    *,
    sampling: Sampling,
    seed: int,
) -> Iterator[int]:
    """Run the model on every sequence and store q and k of some layers.

    One sequence and one layer are in memory at a time.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A causal language model in evaluation mode.
    sequences : sequence of TokenSequence
    store : CaptureStore
    layers : sequence of int
        The model runs no further than the last of them.
    sampling : Sampling
    seed : int
        Of the sampled positions, which do not depend on `layers`.

    Yields
    ------
    int
        Number of sequences done.

    Raises
    ------
    HataError
        If q or k are not finite, or a layer's attention did not report them.
    """
    generator = torch.Generator().manual_seed(seed)
    wanted = set(layers)
    # The decoder: logits of a long sequence would need gigabytes and nobody reads them.
    decoder = model.get_decoder()
    for index, sequence in enumerate(sequences):
        positions = sampling.positions(len(sequence.tokens), generator)
        seen: set[int] = set()

        def write(layer, q, k, scale, index=index, positions=positions, seen=seen):
            if layer in wanted:
                store.write(layer, index, _cut(layer, q, k, scale, positions))
                seen.add(layer)
            if seen == wanted:
                raise _EnoughLayers

        tokens = torch.tensor([sequence.tokens], device=model.device)
        with recording(model, write), suppress(_EnoughLayers):
            decoder(input_ids=tokens, use_cache=False)
        if seen != wanted:
            raise HataError(
                f"model: expected queries and keys of layers {sorted(wanted)}, found them only of "
                f"{sorted(seen)}; the others do not go through transformers' attention interface"
            )
        yield index + 1


def _cut(layer: int, q, k, scale, positions: torch.Tensor) -> Capture:
    rows = positions.to(q.device)
    capture = Capture(
        q[0].index_select(1, rows).transpose(0, 1).cpu(),
        k[0].transpose(0, 1).cpu(),
        positions,
        float(scale),
    )
    if not (torch.isfinite(capture.q).all() and torch.isfinite(capture.k).all()):
        raise HataError(
            f"model, layer {layer}: expected finite queries and keys, found NaN or infinite ones. "
            "Check the model's weights; the checkpoint may be damaged."
        )
    return capture
