"""Queries and keys of a model, after RoPE, on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from hata_sglang.seams.model_process import Job
from hata_sglang.seams.recording import Recording
from hata_sglang.training.data import TokenSequence


@dataclass(frozen=True)
class Capture:
    """Queries and keys of one layer on one sequence, values too where they were asked for.

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
    v : torch.Tensor, optional
        ``[S, Hkv, Dv]``, values of all positions.
    """

    q: torch.Tensor
    k: torch.Tensor
    positions: torch.Tensor
    scale: float
    v: torch.Tensor | None = None


def join(captures: Sequence[Capture]) -> Capture:
    """Captures of several layers on one sequence as one of a layer with all their heads.

    Parameters
    ----------
    captures : sequence of Capture
        With the same positions, heads and head sizes. Queries are scaled to the first one's scale.
    """
    first = captures[0]
    q = torch.cat([own.q * (own.scale / first.scale) for own in captures], dim=1)
    k = torch.cat([own.k for own in captures], dim=1)
    v = None if first.v is None else torch.cat([own.v for own in captures], dim=1)
    return Capture(q, k, first.positions, first.scale, v)


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

    def positions(self, length: int, generator: torch.Generator, first: int = 0) -> torch.Tensor:
        """Sample positions of a sequence of `length` tokens, rising and without repeats.

        Parameters
        ----------
        length : int
        generator : torch.Generator
        first : int
            First position whose query is at hand.

        Returns
        -------
        torch.Tensor
            Int64 ``[min(queries, length - max(length // 2, first))]``.
        """
        half = max(length // 2, first)
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
        """Store one capture; q, k and v as bfloat16, which is what a KV cache keeps."""
        path = self.path(layer, sequence)
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = {name: getattr(capture, name) for name in ("q", "k", "v")}
        tensors = {
            name: tensor.to(torch.bfloat16).contiguous()
            for name, tensor in kept.items()
            if tensor is not None
        }
        tensors["positions"] = capture.positions
        tensors["scale"] = torch.tensor(capture.scale, dtype=torch.float64)
        save_file(tensors, path)

    def read(self, layer: int, sequence: int) -> Capture:
        """Load one capture, its tensors as float32."""
        tensors = load_file(self.path(layer, sequence))
        scale = float(tensors.pop("scale"))
        positions = tensors.pop("positions")
        return Capture(
            positions=positions, scale=scale, **{n: t.float() for n, t in tensors.items()}
        )


def capture_jobs(
    sequences: Sequence[TokenSequence],
    store: CaptureStore,
    sampling: Sampling,
    seed: int,
    *,
    values: bool = False,
) -> list[Job]:
    """What a `ModelProcess` has to run so that `store` holds captures of sequences.

    Parameters
    ----------
    sequences : sequence of TokenSequence
        Their places are their numbers in the store.
    store : CaptureStore
    sampling : Sampling
    seed : int
        Of the sampled positions.
    values : bool
        Whether v is stored, too.
    """
    generator = torch.Generator().manual_seed(seed)
    jobs = []
    for index, sequence in enumerate(sequences):
        positions = sampling.positions(len(sequence), generator)
        keep = partial(_keep, store, index, positions)
        jobs.append(Job(sequence.tokens, positions, keep, values, sequence.written))
    return jobs


def _keep(
    store: CaptureStore, sequence: int, positions: torch.Tensor, layer: int, found: Recording
) -> None:
    store.write(layer, sequence, Capture(found.q, found.k, positions, found.scale, found.v))
