"""Counters of one scheduler process: how sparse decoding really was."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass
class Counters:
    """Totals since the server started. Host integers: counting never waits for the device.

    Attributes
    ----------
    decode_steps : int
        Decode steps with at least one row whose context was longer than its budget.
    tokens_in_context : int
        Sum of context lengths over decode steps, rows and sparse layers: what dense decoding
        would have read, in tokens per KV head.
    tokens_attended : int
        The same sum over the tokens that were attended, ``min(context, budget)``.
    tokens_encoded : int
        Tokens whose key codes were computed, each counted once (in the first coded layer).
        A prompt whose prefix is in the radix tree adds its new tokens alone.
    """

    decode_steps: int = 0
    tokens_in_context: int = 0
    tokens_attended: int = 0
    tokens_encoded: int = 0

    def snapshot(self) -> dict[str, int]:
        """The totals as a plain dict."""
        return asdict(self)


#: This process's counters. SGLang runs one scheduler, with one model, per process.
COUNTERS = Counters()
