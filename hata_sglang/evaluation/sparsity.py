"""What a server runs, and the check by its counters that it really did.

A dense run must never be reported as sparse: no row is written before `check_sparsity` has passed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from hata_sglang.errors import HataError


class Arm(NamedTuple):
    """What a server runs: the columns that tell arms apart.

    Attributes
    ----------
    arm : str
        ``dense``, or a method.
    method : str
        Of the YAML; ``dense`` for the stock backend.
    bits : str
        Bits per token and KV head; empty for methods without codes.
    budget : str
        Share of the context or number of tokens; empty for dense.
    """

    arm: str
    method: str = "dense"
    bits: str = ""
    budget: str = ""

    @property
    def sparse(self) -> bool:
        """Whether the server's counters must show sparse steps."""
        return self.method != "dense"

    @property
    def label(self) -> str:
        """For people: name and budget."""
        return f"{self.arm} at {self.budget}" if self.sparse else self.arm


class Reading(NamedTuple):
    """What one decode step reads in one sparse layer, averaged over steps.

    Attributes
    ----------
    steps : int
        Decode steps in which hata decoded a layer.
    attended, context : float
        Tokens per KV head: read by attention, and in the context.
    layers : int
        Layers that hata decoded in a step.
    """

    steps: int
    attended: float
    context: float
    layers: int

    @property
    def share(self) -> float:
        """Attended tokens over the context, 0 to 1."""
        return self.attended / self.context


def reading(before: dict[str, Any], after: dict[str, Any], what: str = "the run") -> Reading:
    """What was read between two snapshots of the counters.

    Parameters
    ----------
    before, after : dict of str to Any
        From `hata_sglang.evaluation.client.Client.counters`.
    what : str, default "the run"
        Named in errors.

    Raises
    ------
    HataError
        If no step between the two was sparse.
    """
    keys = ("decode_steps", "layer_steps", "tokens_in_context", "tokens_attended")
    steps, layer_steps, total, attended = (after[key] - before[key] for key in keys)
    if steps == 0 or attended >= total:
        raise HataError(
            f"{what} was not sparse: {steps} sparse steps read {attended} of {total} tokens (does "
            "the budget cover the whole context?)"
        )
    layers = round(layer_steps / steps)
    return Reading(steps, attended / layer_steps, total / layer_steps, layers)


def check_sparsity(
    arm: Arm,
    before: dict[str, Any] | None,
    after: dict[str, Any] | None,
    steps: int,
) -> str:
    """Make sure that what was decoded between two snapshots was decoded as `arm` says.

    Parameters
    ----------
    arm : Arm
    before, after : dict of str to Any, or None
        The server's counters.
    steps : int
        Decode steps that the answers took, summed over requests; 0 proves nothing.

    Returns
    -------
    str
        Share of the context that a step read in the sparse layers, for the column ``read``;
        empty for dense, and where nothing was decoded.

    Raises
    ------
    HataError
        If a sparse arm was not sparse, or a dense one runs on a server with hata.
    """
    if not arm.sparse:
        if before is not None or after is not None:
            raise HataError(f"the arm {arm.arm} is dense, but the server runs hata")
        return ""
    if before is None or after is None:
        raise HataError(f"the arm {arm.label} was not sparse: the server has no counters of hata")
    if steps == 0:
        return ""
    return f"{reading(before, after, f'the arm {arm.label}').share:.5f}"
