"""How many tokens one KV head of a sparse layer attends to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator
from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from torch import Tensor

# A ratio is read in billionths, so that the budget of a length is integer arithmetic: the host
# and a CUDA graph then agree on every length (0.07 * 100 is 7.000000000000001 in floats, whose
# ceiling is 8). With lengths below 2**31 the product stays below 2**63.
RATIO_UNIT = 10**9

#: Lengths and budgets are int32 on every device.
MAX_TOKENS = 2**31 - 1

_TOKENS = "a number of tokens (integer, 1 to 2**31 - 1)"
EXPECTED = f"{_TOKENS} or {{ratio: 0.0156, min: 256, max: 4096}}"


class Budget(BaseModel):
    """Tokens per (request, KV head) of a sparse layer, as a function of the context.

    In YAML an integer is a fixed budget; a mapping with ``ratio``, ``min`` and ``max``
    (all three) is a share of the context, rounded up and clamped to ``[min, max]``.
    Either way a context shorter than its budget is attended in full.

    Attributes
    ----------
    ratio : float or None
        Share of the context, in (0, 1]; nine decimals count. None for a fixed budget.
    min, max : int
        Bounds in tokens, 1 to 2**31 - 1; equal for a fixed budget.

    Raises
    ------
    pydantic.ValidationError
        On anything else (`hata_sglang.config` turns it into a `Refusal`).

    Examples
    --------
    >>> Budget.model_validate(256).tokens(6000)
    256
    >>> Budget.model_validate({"ratio": 0.0156, "min": 64, "max": 4096}).tokens(6000)
    94
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    ratio: float | None = Field(
        ge=1 / RATIO_UNIT, le=1, description="a number above 0 and at most 1 (share of the context)"
    )
    min: int = Field(ge=1, le=MAX_TOKENS, description=_TOKENS)
    max: int = Field(ge=1, le=MAX_TOKENS, description=_TOKENS)

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_TOKENS:
            return {"ratio": None, "min": value, "max": value}
        if isinstance(value, dict):
            return value
        raise PydanticCustomError("hata", "not a budget", {"expected": EXPECTED})

    @model_validator(mode="after")
    def _check(self) -> Budget:
        if self.ratio is None and self.min != self.max:
            raise PydanticCustomError("hata", "no ratio", {"expected": EXPECTED})
        if self.min > self.max:
            found = f"min {self.min}, max {self.max}"
            raise PydanticCustomError(
                "hata", "min above max", {"expected": "min <= max", "found": found}
            )
        return self

    @model_serializer
    def _to_yaml(self) -> int | dict[str, Any]:
        if self.ratio is None:
            return self.min
        return {"ratio": self.ratio, "min": self.min, "max": self.max}

    def _ratio_units(self) -> int:
        return round((self.ratio or 0) * RATIO_UNIT)

    @property
    def is_fixed(self) -> bool:
        """Whether the budget is a plain number of tokens, whatever the context."""
        return self.ratio is None

    @property
    def share(self) -> tuple[int, int, int]:
        """Parts of a billion, and bounds in tokens: what the device computes with."""
        return self._ratio_units(), self.min, self.max

    def tokens(self, seq_len: int) -> int:
        """Tokens attended in a context of `seq_len` tokens.

        Parameters
        ----------
        seq_len : int
            Length in tokens, the current one included; 0 to 2**31 - 1.

        Returns
        -------
        int
            ``min(seq_len, clamp(ceil(ratio * seq_len), min, max))``.
        """
        share = -(-seq_len * self._ratio_units() // RATIO_UNIT)
        return min(seq_len, max(self.min, min(self.max, share)))

    def tokens_tensor(self, seq_lens: Tensor) -> Tensor:
        """`tokens` of every element, on the tensor's device and without a host synchronisation.

        Parameters
        ----------
        seq_lens : Tensor, int32 or int64, any shape
            Lengths in tokens, the current one included.

        Returns
        -------
        Tensor, int32, same shape and device
            The same numbers as `tokens`.
        """
        import torch

        if self.ratio is None:
            return seq_lens.clamp(max=self.max).to(torch.int32)
        lengths = seq_lens.to(torch.int64)
        share = (lengths * self._ratio_units() + (RATIO_UNIT - 1)) // RATIO_UNIT
        return torch.minimum(lengths, share.clamp(self.min, self.max)).to(torch.int32)

    def k_max(self, context_len: int) -> int:
        """The largest budget that any context up to `context_len` tokens can get.

        `tokens` never falls as the context grows, so this is its value at the end.
        """
        return self.tokens(context_len)

    def __str__(self) -> str:
        if self.ratio is None:
            return str(self.min)
        return f"{self.ratio * 100:g} % ({self.min} to {self.max})"
