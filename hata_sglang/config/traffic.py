"""Of which prompts a server keeps queries, keys and values, to train on."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from hata_sglang.config.budget import MAX_TOKENS

EXPECTED = "a mapping such as {folder: DIR, share: 0.01, requests: 32, min: 2048, max: 16384}"
_TOKENS = "a number of tokens (integer, 1 to 2**31 - 1)"


class Traffic(BaseModel):
    """Where samples of live requests go, and how many of them.

    Attributes
    ----------
    folder : str
        Made if missing. Absolute, or from the YAML's folder.
    share : float
        Of the prompts within the bounds, in (0, 1].
    requests : int
        Kept at most; a new one takes the place of the oldest.
    min, max : int
        Bounds of a prompt's length in tokens, its cached prefix included.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    folder: str = Field(min_length=1, description="the path of a folder, for captures of requests")
    share: float = Field(
        0.01, gt=0, le=1, description="a number above 0 and at most 1 (of prompts)"
    )
    requests: int = Field(32, ge=1, le=10_000, description="a number of requests (1 to 10000)")
    min: int = Field(2048, ge=1, le=MAX_TOKENS, description=_TOKENS)
    max: int = Field(16_384, ge=1, le=MAX_TOKENS, description=_TOKENS)

    @model_validator(mode="after")
    def _check(self) -> Traffic:
        if self.min > self.max:
            found = f"min {self.min}, max {self.max}"
            raise PydanticCustomError(
                "hata", "min above max", {"expected": "min <= max", "found": found}
            )
        return self

    def __str__(self) -> str:
        return (
            f"queries, keys and values of {100 * self.share:g} % of prompts of {self.min} to "
            f"{self.max} tokens, the last {self.requests}, are kept in {self.folder}"
        )
