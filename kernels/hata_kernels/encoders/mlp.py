"""Codes of small MLPs, one pair for every query head (HashAttention)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn.functional import silu

from ..bits import WORD_BITS
from ..checks import expect
from .base import Encoder, Queries
from .weights import expect_names, project, take

MAX_LAYERS = 3


class MlpEncoder(Encoder):
    """Signs of the 32 outputs of an MLP; every query head has one for keys and one for queries.

    Desai et al., "HashAttention", arXiv 2412.14468. Each key of a KV head goes through the key
    MLPs of its G query heads, and its code is their G words one after the other (r = 32 * G);
    word g of the one query plane is query head g's own MLP's.

    Parameters
    ----------
    tensors : mapping of str to torch.Tensor
        For n = 0 to at most 2: ``key.{n}.weight [Hq, in, out]``, ``key.{n}.bias [Hq, out]`` and
        ``query.{n}.weight``, ``query.{n}.bias``, with SiLU between the layers; 32 outputs.
    num_kv_heads, group, head_dim : int
        KV heads, query heads per KV head, head size.

    Raises
    ------
    ValueError
        When a tensor does not fit.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        *,
        num_kv_heads: int,
        group: int,
        head_dim: int,
    ) -> None:
        layers = sum(name.startswith("key.") and name.endswith(".weight") for name in tensors)
        expect(1 <= layers <= MAX_LAYERS, "layers of the key MLPs", f"1 to {MAX_LAYERS}", layers)
        names = [
            f"{side}.{n}.{kind}"
            for side in ("key", "query")
            for n in range(layers)
            for kind in ("weight", "bias")
        ]
        expect_names(tensors, *names)
        heads = num_kv_heads * group
        for side in ("key", "query"):
            size = head_dim
            for n in range(layers):
                out = WORD_BITS if n == layers - 1 else None
                size = take(tensors, f"{side}.{n}.weight", heads, size, out).shape[2]
                take(tensors, f"{side}.{n}.bias", heads, size)
        super().__init__(
            tensors,
            num_kv_heads=num_kv_heads,
            group=group,
            head_dim=head_dim,
            bits=WORD_BITS * group,
            plane_weights=(1,),
        )
        self._key_layers, self._query_layers = (
            [
                (self._tensors[f"{side}.{n}.weight"], self._tensors[f"{side}.{n}.bias"])
                for n in range(layers)
            ]
            for side in ("key", "query")
        )
        # The first layers of the G key MLPs of a KV head read the same key: one wide product.
        weight, bias = self._key_layers[0]
        wide = weight.unflatten(0, (num_kv_heads, group)).transpose(1, 2).flatten(2)
        self._key_layers[0] = (wide.contiguous(), bias.reshape(num_kv_heads, -1))

    def bytes_in(self, dtype: torch.dtype) -> int:
        """Bytes that the copy takes which `to` makes in a dtype: the first layer is there twice."""
        first = self._tensors["key.0.weight"].numel()
        return super().bytes_in(dtype) + dtype.itemsize * first

    def _keys(self, k: torch.Tensor) -> tuple[torch.Tensor, None]:
        outputs = run_layers(k, self._key_layers)
        return (outputs > 0).reshape(k.shape[0], self.num_kv_heads, self.bits), None

    def _queries(self, q: torch.Tensor) -> tuple[torch.Tensor, None]:
        outputs = run_layers(q, self._query_layers)
        return (outputs > 0).reshape(q.shape[0], self.num_kv_heads, 1, self.bits), None

    def _launch_keys(self, k, codes, slots, scales, tally=None) -> None:
        self._launch(k, self._key_layers, codes, slots, tally)

    def _launch_queries(self, q: torch.Tensor) -> Queries:
        shape = (q.shape[0], self.num_kv_heads, self.words)
        codes = torch.empty(shape, dtype=torch.int32, device=q.device)
        self._launch(q, self._query_layers, codes, None, None)
        return Queries(codes)

    def _launch(self, x, layers, codes, slots, tally) -> None:
        """Hidden layers by PyTorch, in the weights' dtype; the last one packs and scatters."""
        from ..encode.triton import encode_triton

        *hidden, (weight, bias) = layers
        for hidden_weight, hidden_bias in hidden:
            rows = split_heads(x, hidden_weight.shape[0]).transpose(0, 1).to(hidden_weight.dtype)
            offset = hidden_bias.to(hidden_weight.dtype).unsqueeze(1)
            x = silu(torch.baddbmm(offset, rows, hidden_weight)).transpose(0, 1)
        heads = weight.shape[0]
        encode_triton(
            split_heads(x, heads),
            weight,
            bias=bias,
            out=codes.view(codes.shape[0], heads, -1),
            slots=slots,
            tally=tally,
        )


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """View ``[T, H, G * n]`` as ``[T, heads, n]``: the wide first layer's outputs, head by head."""
    return x if x.shape[1] == heads else x.unflatten(2, (heads // x.shape[1], -1)).flatten(1, 2)


def run_layers(x: torch.Tensor, layers: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Outputs of the MLPs in float32, ``[T, H, m]`` with H and m of the last layer.

    Parameters
    ----------
    x : torch.Tensor
        ``[T, H, n]``.
    layers : list of (torch.Tensor, torch.Tensor)
        Weight ``[H', n, m]`` and bias ``[H', m]`` of each layer; where H' is a multiple of the
        heads of the layer before, that layer's outputs are those of H' heads side by side.
    """
    for place, (weight, bias) in enumerate(layers):
        x = silu(x) if place else x
        x = project(split_heads(x, weight.shape[0]), weight, bias)
    return x
