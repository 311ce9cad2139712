"""Capturing queries and keys of a model, after RoPE, to disk.

The model is not patched: transformers lets callers register an attention
function by name, and hands it q and k exactly as attention uses them. Ours
writes them down and calls the stock SDPA function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
def recording(model: Any, write: Callable[..., None]) -> Iterator[None]:
    """Have `model` report q, k and v of every attention layer.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Its attention implementation is put back afterwards.
    write : callable
        Called as ``write(layer, q, k, v, scale)`` with q ``[B, Hq, S, D]``, k ``[B, Hkv, S, D]``
        after RoPE, and v ``[B, Hkv, S, Dv]``.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def attention(module, query, key, value, attention_mask, **kwargs):
        scaling = kwargs.get("scaling")
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        write(module.layer_idx, query, key, value, scale)
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
def visit_layers(
    model: Any,
    sequence: TokenSequence,
    layers: Sequence[int],
    positions: torch.Tensor,
    visit: Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor, float], None],
) -> None:
    """Run the model on a sequence and look at some of its layers while they compute.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A causal language model in evaluation mode.
    sequence : TokenSequence
    layers : sequence of int
        The model runs no further than the last of them.
    positions : torch.Tensor
        Int64 ``[N]``, whose queries are wanted.
    visit : callable
        Called once per layer as ``visit(layer, q, k, v, scale)``: q ``[N, Hq, D]``,
        k ``[S, Hkv, D]`` and v ``[S, Hkv, Dv]``, rounded to bfloat16, which is what a KV cache
        keeps, on the model's device.

    Raises
    ------
    HataError
        If a number is not finite, or a layer's attention did not report.
    """
    wanted, seen = set(layers), set()
    rows = positions.to(model.device)

    def write(layer, q, k, v, scale):
        if layer in wanted:
            cut = [x[0].transpose(0, 1).to(torch.bfloat16) for x in (q[:, :, rows], k, v)]
            if not all(torch.isfinite(x).all() for x in cut):
                raise HataError(
                    f"model, layer {layer}: expected finite queries, keys and values, found NaN "
                    "or infinite ones. Check the model's weights; the checkpoint may be damaged."
                )
            visit(layer, *cut, float(scale))
            seen.add(layer)
        if seen == wanted:
            raise _EnoughLayers

    tokens = torch.tensor([sequence.tokens], device=model.device)
    with recording(model, write), suppress(_EnoughLayers):
        # The decoder: logits of a long sequence would need gigabytes and nobody reads them.
        model.get_decoder()(input_ids=tokens, use_cache=False)
    if seen != wanted:
        raise HataError(
            f"model: expected queries, keys and values of layers {sorted(wanted)}, found them only "
            f"of {sorted(seen)}; the others do not go through transformers' attention interface"
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
