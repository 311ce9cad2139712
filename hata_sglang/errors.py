"""Errors that a user of the package is meant to read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class HataError(Exception):
    """Base of every error that this package raises on purpose.

    Command-line tools print the message alone and exit with 2; any other
    exception is a defect and keeps its traceback.
    """


@dataclass(frozen=True)
class Problem:
    """One reason why ``hata`` cannot run.

    Parameters
    ----------
    setting : str
        What the user can change: a YAML key, a flag, an environment variable
        or a file.
    expected : str
        What would have been accepted.
    found : str
        What was there instead.
    """

    setting: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.setting}: expected {self.expected}, found {self.found}"


class Refusal(HataError):
    """Every reason why ``hata`` cannot run, in one error.

    Parameters
    ----------
    problems : iterable of Problem
        At least one. All are listed in the message, in this order.

    Raises
    ------
    ValueError
        If `problems` is empty: a refusal without a reason is a defect.

    Examples
    --------
    >>> print(Refusal([Problem("bits", "a multiple of 32", "100")]))
    hata cannot run: 1 problem
      - bits: expected a multiple of 32, found 100
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        if not self.problems:
            raise ValueError("problems: expected at least one Problem, found none")
        count = len(self.problems)
        headline = f"hata cannot run: {count} problem{'s' if count != 1 else ''}"
        super().__init__("\n".join([headline, *(f"  - {problem}" for problem in self.problems)]))

    def __reduce__(self):
        # Exceptions rebuild themselves from `args` (the message); a refusal raised in a
        # scheduler process has to cross to the launcher with its problems instead.
        return type(self), (self.problems,)
