"""What hata is in this process, and how sparse decoding really was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hata_kernels.tally import ATTENDED, CONTEXT, ENCODED, STEPS


class Metrics:
    """Facts and totals of one scheduler process, which serves one model.

    Totals come from tallies (`hata_kernels.tally`), to which the launches that encode and attend
    add themselves. A layer that the stock backend decodes adds nothing.
    """

    def __init__(self) -> None:
        self._facts: Mapping[str, Any] = {}
        self._tallies: Mapping[int, torch.Tensor] = {}
        self._coded: tuple[int, ...] = ()

    @property
    def serving(self) -> bool:
        """Whether hata is attached to this process's attention backend."""
        return bool(self._facts)

    def serve(
        self,
        facts: Mapping[str, Any],
        tallies: Mapping[int, torch.Tensor],
        coded: tuple[int, ...],
    ) -> None:
        """Say what is served from now on.

        Parameters
        ----------
        facts : mapping of str to Any
            JSON values, of `hata_sglang.seams.session.Session.facts`.
        tallies : mapping of int to torch.Tensor
            int64 ``[SIZE]`` by sparse layer.
        coded : tuple of int
            Sparse layers whose keys have codes.
        """
        self._facts, self._tallies, self._coded = facts, tallies, coded

    def update(self, **facts: Any) -> None:
        """Say what of the facts has changed."""
        self._facts = {**self._facts, **facts}

    def snapshot(self) -> dict[str, Any] | None:
        """Facts and totals since the server started; None where hata serves nothing.

        Returns
        -------
        dict
            The facts, and

            ``decode_steps``: steps in which hata decoded a sparse layer, the most of any layer;
            ``layer_steps``: the same, summed over layers;
            ``tokens_in_context``: tokens that dense attention would have read in these, per KV
            head, summed over layers, steps and requests;
            ``tokens_attended``: tokens that were read instead;
            ``tokens_encoded``: tokens whose key codes were written, in the coded layer that wrote
            the fewest. A prompt whose prefix is cached adds its new tokens alone.

        Notes
        -----
        Copies some numbers from the device, which waits for the work before it.
        """
        if not self.serving:
            return None
        rows = torch.stack([*self._tallies.values()]).cpu()
        coded = [place for place, layer in enumerate(self._tallies) if layer in self._coded]
        return {
            **self._facts,
            "decode_steps": int(rows[:, STEPS].max()),
            "layer_steps": int(rows[:, STEPS].sum()),
            "tokens_in_context": int(rows[:, CONTEXT].sum()),
            "tokens_attended": int(rows[:, ATTENDED].sum()),
            "tokens_encoded": int(rows[coded, ENCODED].min()) if coded else 0,
        }


#: This process's metrics.
METRICS = Metrics()
