"""Sums of the values of every request, with which steps mix in the mean of what they leave out."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hata_kernels.attend import LeftOut, sum_values
from hata_sglang.decoding.step import Batch
from hata_sglang.shape import AttentionShape


class ValueSums:
    """A sum per layer, request and KV head; what a step needs beside its selections.

    A request's sum is made anew whenever its prompt is extended (`recount`): by a prompt or a piece
    of one, after a prefix from the radix tree, when a retracted request comes back. Then every step
    adds the value of its own token, where it attends.

    Parameters
    ----------
    weights : mapping of int to torch.Tensor
        By layer, float32 ``[Hq, RATIOS]``: what the mean weighs (`hata_kernels.attend.left_out`).
    requests : int
        Rows of SGLang's table of slots.
    shape : AttentionShape
    device : torch.device or str

    Attributes
    ----------
    sums : dict of int to torch.Tensor
        By layer, float32 ``[requests, Hkv, D]``.
    """

    def __init__(
        self,
        weights: Mapping[int, torch.Tensor],
        requests: int,
        shape: AttentionShape,
        device: torch.device | str,
    ) -> None:
        self.weights = {layer: own.contiguous().to(device) for layer, own in weights.items()}
        size = (len(weights), requests, shape.num_kv_heads, shape.head_dim)
        sums = torch.zeros(size, dtype=torch.float32, device=device)
        self.sums = dict(zip(weights, sums, strict=True))

    def warm(self, dtype: torch.dtype) -> None:
        """Compile what prompts need, on a GPU; the sum of request 0, which pads, is written.

        Parameters
        ----------
        dtype : torch.dtype
            Of the values.
        """
        for sums in [*self.sums.values()][:1]:
            make = {"device": sums.device}
            one = torch.ones(1, dtype=torch.int64, **make)
            table = torch.zeros(len(sums), 1, dtype=torch.int32, **make)
            values = torch.zeros(1, *sums.shape[1:], dtype=dtype, **make)
            sum_values(values, table, one - 1, one, longest=1, sums=sums)

    @staticmethod
    def nbytes(layers: int, requests: int, shape: AttentionShape) -> int:
        """Bytes of the sums of so many layers and requests."""
        return 4 * layers * requests * shape.num_kv_heads * shape.head_dim

    def recount(self, layer: int, values: torch.Tensor, batch: Batch) -> None:
        """Sum the values of requests whose prompts were extended; nothing for other layers.

        Parameters
        ----------
        layer : int
        values : torch.Tensor
            ``[slots, Hkv, D]``: the layer's, with those of the batch.
        batch : Batch
            The requests, with all of their tokens.
        """
        if layer in self.sums and len(batch.rows):
            sum_values(
                values,
                batch.req_to_token,
                batch.rows,
                batch.seq_lens,
                longest=int(batch.seq_lens_cpu.max()),
                sums=self.sums[layer],
            )

    def step(self, layer: int, rows: torch.Tensor) -> LeftOut | None:
        """What `attend` needs for a step of ``rows [bs]``; None for layers without weights."""
        if layer not in self.sums:
            return None
        return LeftOut(self.sums[layer], rows, self.weights[layer])
