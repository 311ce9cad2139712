"""Errors that a user of the package is meant to read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

#: Problems that one refusal lists. Nobody reads more, and a hostile file can have thousands.
MAX_PROBLEMS = 100
#: Characters of each part of a problem.
MAX_TEXT = 2_000


def printable(text: str, limit: int = MAX_TEXT) -> str:
    r"""Text from a file or a stranger as a terminal may show it.

    Parameters
    ----------
    text : str
        Any text.
    limit : int
        Longest result in characters.

    Returns
    -------
    str
        One line: control characters, line ends, bidirectional overrides and half characters are
        written as Python writes them in a string (``\x1b``, ``\u202e``), and a text that is too
        long is cut.
    """
    text = text[: limit + 1]
    if not text.isprintable():
        text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return text if len(text) <= limit else text[: limit - 3] + "..."


class HataError(Exception):
    """Base of every error that this package raises on purpose.

    Command-line tools print the message alone and exit with 2; any other
    exception is a defect and keeps its traceback.
    """


@dataclass(frozen=True)
class Problem:
    """One reason why ``hata`` cannot run; its texts are made `printable`.

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

    def __post_init__(self) -> None:
        # Keys, values, paths and the words of other libraries all come through here, so that a
        # file cannot write to the terminal, or forge a line of the error.
        for part in ("setting", "expected", "found"):
            object.__setattr__(self, part, printable(str(getattr(self, part))))

    def __str__(self) -> str:
        return f"{self.setting}: expected {self.expected}, found {self.found}"


class Refusal(HataError):
    """Every reason why ``hata`` cannot run, in one error.

    Parameters
    ----------
    problems : iterable of Problem
        At least one. Listed in the message in this order, the first `MAX_PROBLEMS` of them; no more
        are taken from an iterator than it needs to know whether there are more.

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
        taken = tuple(islice(problems, MAX_PROBLEMS + 1))
        if not taken:
            raise ValueError("problems: expected at least one Problem, found none")
        self.problems: tuple[Problem, ...] = taken[:MAX_PROBLEMS]
        count = str(len(taken)) if taken == self.problems else f"more than {MAX_PROBLEMS}"
        headline = f"hata cannot run: {count} problem{'s' if count != '1' else ''}"
        super().__init__("\n".join([headline, *(f"  - {problem}" for problem in self.problems)]))

    @classmethod
    def of(cls, setting: object, expected: str, found: str) -> Refusal:
        """A refusal of one problem; `setting` is written by `str`."""
        return cls([Problem(str(setting), expected, found)])

    def __reduce__(self):
        # Exceptions rebuild themselves from `args` (the message); a refusal raised in a
        # scheduler process has to cross to the launcher with its problems instead.
        return type(self), (self.problems,), {"args": self.args}


def refuse_any(problems: Iterable[Problem]) -> None:
    """Raise a `Refusal` if there are problems.

    Parameters
    ----------
    problems : iterable of Problem
        Maybe none. An iterator is not asked for more than the message needs.
    """
    if listed := list(islice(problems, MAX_PROBLEMS + 1)):
        raise Refusal(listed)
