"""Looking at queries, keys and values of a model while it computes.

The model is not patched: transformers lets callers register an attention
function by name, and hands it q, k and v exactly as attention uses them. Ours
reports them and calls the stock SDPA function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch

from hata_sglang.errors import HataError
from hata_sglang.training.data import TokenSequence

ATTENTION_NAME = "hata_capture"


class _EnoughLayers(Exception):
    """Ends a forward pass whose remaining layers nobody asked for."""


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
