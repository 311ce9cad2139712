"""A model's attention layers: which hata can decode, and those that it has to refuse."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention

from hata_kernels.attend import fits_dense
from hata_sglang.errors import HataError, Problem, refuse_any
from hata_sglang.seams.session import Session


def attention_layers(model: torch.nn.Module) -> list[RadixAttention]:
    """The model's attention layers that reach the attention backend."""
    return [module for module in model.modules() if isinstance(module, RadixAttention)]


#: Properties of layers whose attention is softmax over all earlier tokens and no more.
PLAIN = {
    "logit_cap": (0, 0.0, None),
    "sliding_window_size": (-1, None),
    "is_cross_attention": (False,),
    # Bidirectional is how Gemma 3 prefills images; a decode step is the same.
    "attn_type": (AttentionType.DECODER, AttentionType.DECODER_BIDIRECTIONAL),
    "xai_temperature_len": (-1, None),
    "k_scale": (None,),
    "use_irope": (False,),
}


def _unlike_plain(layer: RadixAttention) -> dict[str, tuple[Any, Any]]:
    """Properties in which a layer's attention is more: what they should be, and what they are."""
    values = {name: getattr(layer, name, allowed[0]) for name, allowed in PLAIN.items()}
    return {
        name: (PLAIN[name][0], value) for name, value in values.items() if value not in PLAIN[name]
    }


def dense_layers(
    layers: list[RadixAttention], session: Session, dtype: torch.dtype, device: torch.device
) -> list[int]:
    """Dense layers that hata's kernels can decode as the inner backend does.

    Parameters
    ----------
    layers : list of RadixAttention
        Of the model.
    session : Session
    dtype : torch.dtype
        Of the pool's keys and values.
    device : torch.device
        A GPU.
    """
    shape, sparse = session.shape, {plan.layer for plan in session.sparse_plans}
    heads = (shape.num_heads, shape.num_kv_heads, shape.head_dim, shape.head_dim)

    def same(layer: RadixAttention) -> bool:
        own = (layer.tp_q_head_num, layer.tp_k_head_num, layer.qk_head_dim, layer.v_head_dim)
        return own == heads

    if dtype not in (torch.bfloat16, torch.float16) or not fits_dense(*heads[:3], device):
        return []
    return [
        layer.layer_id
        for layer in layers
        if layer.layer_id not in sparse and same(layer) and not _unlike_plain(layer)
    ]


def check_layers(model: torch.nn.Module, wanted: Collection[int], advice: str = "") -> None:
    """Refuse layers whose attention is more than softmax over all earlier tokens.

    Parameters
    ----------
    model : torch.nn.Module
    wanted : collection of int
        Layers that hata is to decode, or to train for.
    advice : str
        What else can be done about such a layer.

    Raises
    ------
    Refusal
        One line for every property that sparse decoding does not implement.
    """
    layers = {layer.layer_id: layer for layer in attention_layers(model)}
    problems = []
    if missing := sorted(set(wanted) - set(layers)):
        problems.append(
            Problem("model", "softmax attention in every sparse layer", f"none in layers {missing}")
        )
    for number in sorted(set(wanted) & set(layers)):
        layer, setting = layers[number], f"attention of layer {number}"
        problems += [
            Problem(setting + advice, f"{name} {expected}", f"{name} {found}")
            for name, (expected, found) in _unlike_plain(layer).items()
        ]
        if layer.qk_head_dim != layer.v_head_dim:
            dims = f"{layer.qk_head_dim} and {layer.v_head_dim}"
            problems.append(Problem(setting, "head_dim of K = V", dims))
    refuse_any(problems)


def require_plain(layer: RadixAttention, more: dict[str, Any]) -> None:
    """Stop where a layer asks for more than softmax attention over its keys and values.

    Parameters
    ----------
    layer : RadixAttention
    more : dict of str to object
        What it hands to the backend beside q, k and v.

    Raises
    ------
    HataError
    """
    if found := ", ".join(name for name, value in more.items() if value is not None):
        raise HataError(f"layer {layer.layer_id}: expected plain attention, found {found}")
