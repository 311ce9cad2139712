"""Capturing queries and keys of a model, after RoPE, to disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hata_sglang.training.data import TokenSequence
from hata_sglang.training.visiting import visit_layers


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
    model, layers
        As for `visit_layers`, whose errors are raised.
    sequences : sequence of TokenSequence
    store : CaptureStore
    sampling : Sampling
    seed : int
        Of the sampled positions, which do not depend on `layers`.

    Yields
    ------
    int
        Number of sequences done.
    """
    generator = torch.Generator().manual_seed(seed)
    for index, sequence in enumerate(sequences):
        positions = sampling.positions(len(sequence.tokens), generator)

        def keep(layer, q, k, _v, scale, index=index, positions=positions):
            store.write(layer, index, Capture(q.cpu(), k.cpu(), positions, scale))

        visit_layers(model, sequence, layers, positions, keep)
        yield index + 1
