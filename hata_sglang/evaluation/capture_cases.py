"""Queries, keys and values of a running model, one layer and sequence at a time, on no disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch

from hata_sglang.errors import HataError
from hata_sglang.evaluation.selectors import AttentionCase
from hata_sglang.training.capture import recording
from hata_sglang.training.data import TokenSequence


class _EnoughLayers(Exception):
    """Ends a forward pass whose remaining layers nobody asked for."""


@torch.inference_mode()
def visit_layers(
    model: Any,
    sequence: TokenSequence,
    layers: Sequence[int],
    positions: torch.Tensor,
    visit: Callable[[AttentionCase], None],
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
        Called once per layer. Queries, keys and values are rounded to bfloat16, which is what
        training captures and a KV cache keep, and lie on the model's device as float32.

    Raises
    ------
    HataError
        If a number is not finite, or a layer's attention did not report.
    """
    wanted, seen = set(layers), set()
    rows = positions.to(model.device)

    def write(layer: int, q, k, v, scale) -> None:
        if layer in wanted:
            cut = (q[:, :, rows], k, v)
            q, k, v = (x[0].transpose(0, 1).to(torch.bfloat16).float() for x in cut)
            if not all(torch.isfinite(x).all() for x in (q, k, v)):
                raise HataError(
                    f"model, layer {layer}: expected finite queries, keys and values, found NaN "
                    "or infinite ones. Check the model's weights; the checkpoint may be damaged."
                )
            visit(AttentionCase(layer, q, k, v, rows, float(scale)))
            seen.add(layer)
        if seen == wanted:
            raise _EnoughLayers

    tokens = torch.tensor([sequence.tokens], device=model.device)
    with recording(model, write, values=True), suppress(_EnoughLayers):
        # The decoder: logits of a long sequence would need gigabytes and nobody reads them.
        model.get_decoder()(input_ids=tokens, use_cache=False)
    if seen != wanted:
        raise HataError(
            f"model: expected queries, keys and values of layers {sorted(wanted)}, found them only "
            f"of {sorted(seen)}; the others do not go through transformers' attention interface"
        )
