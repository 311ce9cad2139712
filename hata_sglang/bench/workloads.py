"""What a server is asked: prompts of random tokens, by workload."""

from __future__ import annotations

import argparse
import random
from dataclasses import asdict, dataclass
from typing import Any

NAMES = ("one", "unrelated", "shared", "short")
#: Workloads that are run where the command line says nothing else: (name, users x tokens).
DEFAULTS = {
    "one": ["1x131072"],
    "unrelated": ["8x32768"],
    "shared": ["32x100000", "128x100000"],
    "short": ["64x500"],
}
#: Lowest token id of a prompt: those below it may mean something to SGLang (end of sequence).
FIRST_TOKEN = 16


@dataclass(frozen=True)
class Workload:
    """Requests that are sent at the same time.

    Attributes
    ----------
    name : str
        One of `NAMES`.
    users : int
        Requests.
    tokens : int
        Of a prompt; of the document for ``shared``.
    output : int
        Tokens that every request generates.
    question : int
        Tokens of a user's own behind the document; 0 but for ``shared``.
    """

    name: str
    users: int
    tokens: int
    output: int
    question: int = 0

    def __str__(self) -> str:
        return f"{self.name} {self.users}x{self.tokens}"

    @property
    def prompt(self) -> int:
        """Tokens of a whole prompt."""
        return self.tokens + self.question

    @property
    def longest(self) -> int:
        """Tokens of a request, at its end."""
        return self.prompt + self.output

    @property
    def pool(self) -> int:
        """Slots of the KV cache that it takes, a shared document counted once."""
        if self.name == "shared":
            return self.tokens + self.users * (self.question + self.output)
        return self.users * self.longest

    def prompts(self, vocabulary: int, repeat: int = 0) -> list[list[int]]:
        """Token ids of every user's prompt; the same for every arm.

        Parameters
        ----------
        vocabulary : int
            Ids are below it.
        repeat : int, default 0
            Other prompts, of the same lengths.
        """
        dice = random.Random(f"{self.name} {self.users} {self.tokens} {repeat}")

        def draw(count: int) -> list[int]:
            return [dice.randrange(FIRST_TOKEN, vocabulary) for _ in range(count)]

        if self.name == "shared":
            document = draw(self.tokens)
            return [document + draw(self.question) for _ in range(self.users)]
        return [draw(self.tokens) for _ in range(self.users)]

    def document(self, vocabulary: int, repeat: int = 0) -> list[int] | None:
        """The shared document's token ids; None but for ``shared``."""
        if self.name != "shared":
            return None
        return self.prompts(vocabulary, repeat)[0][: self.tokens]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; ``Workload(**d)`` undoes it."""
        return asdict(self)


def read_size(text: str) -> tuple[int, int]:
    """Read ``8x32K``: users and tokens of each. The type of an argument of argparse.

    Raises
    ------
    argparse.ArgumentTypeError
        If it is nothing like it.
    """
    users, _, tokens = text.lower().partition("x")
    try:
        sizes = int(users), read_tokens(tokens)
    except (ValueError, argparse.ArgumentTypeError):
        sizes = (0, 0)
    if min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"expected USERSxTOKENS (8x32K), found {text!r}")
    return sizes


def read_tokens(text: str) -> int:
    """Read a number of tokens, ``32768`` or ``32K`` (of 1,024).

    Raises
    ------
    argparse.ArgumentTypeError
        If it is neither, or below 1.
    """
    digits, factor = (text[:-1], 1024) if text.upper().endswith("K") else (text, 1)
    if not digits.isdecimal() or int(digits) < 1:
        raise argparse.ArgumentTypeError(f"expected tokens (32768 or 32K), found {text!r}")
    return int(digits) * factor


def read_count(text: str) -> int:
    """Read a whole number above 0.

    Raises
    ------
    argparse.ArgumentTypeError
        If it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, found {text!r}")
    return int(text)
