"""What a server is asked: prompts of random tokens, by workload."""

from __future__ import annotations

import argparse
import random
import re
from dataclasses import dataclass

#: What each is; its usual sizes, users and tokens of each; and those for a CPU or the demo model,
#: whose context is 8,192.
WORKLOADS: dict[str, tuple[str, list[tuple[int, int]], list[tuple[int, int]]]] = {
    "one": ("one long request", [(1, 131072)], [(1, 4096)]),
    "unrelated": ("long requests that share nothing", [(8, 32768)], [(2, 2048)]),
    "shared": (
        "users with a question each about one document, which is read before",
        [(32, 100000), (128, 100000)],
        [(4, 3072)],
    ),
    "short": ("short chats", [(64, 500)], [(4, 200)]),
}
#: Lowest token id of a prompt: those below it may mean something to SGLang (end of sequence).
FIRST_TOKEN = 16


@dataclass(frozen=True)
class Workload:
    """Requests that are sent at the same time.

    Attributes
    ----------
    name : str
        A key of `WORKLOADS`.
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
    def pool(self) -> int:
        """Slots of the KV cache that it takes, a shared document counted once."""
        own = self.question if self.name == "shared" else self.tokens
        document = self.tokens if self.name == "shared" else 0
        return document + self.users * (own + self.output)

    def prompts(self, vocabulary: int) -> tuple[list[int], list[list[int]]]:
        """Token ids, the same for every arm.

        `sglang.benchmark.serving` has no data set of a shared document in token ids in all
        releases, and as text its length depends on the tokenizer.

        Parameters
        ----------
        vocabulary : int
            Ids are below it.

        Returns
        -------
        document : list of int
            What all share, to be read before; empty but for ``shared``.
        prompts : list of list of int
            Of every user, the document included.
        """
        dice = random.Random(f"{self.name} {self.users} {self.tokens}")

        def draw(count: int) -> list[int]:
            return [dice.randrange(FIRST_TOKEN, vocabulary) for _ in range(count)]

        document, own = [], self.tokens
        if self.name == "shared":
            document, own = draw(self.tokens), self.question
        return document, [document + draw(own) for _ in range(self.users)]


def read_workload(text: str) -> tuple[str, tuple[int, int] | None]:
    """Read ``unrelated=8x32K`` (users, tokens of each; K is 1,024), or a name alone.

    The type of an argument of argparse.

    Raises
    ------
    argparse.ArgumentTypeError
        If there is no such workload, or its size is none.
    """
    name, sign, size = text.partition("=")
    if name not in WORKLOADS:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(WORKLOADS)}, found {name!r}")
    if not sign:
        return name, None
    match = re.fullmatch(r"([1-9]\d*)X([1-9]\d*)(K?)", size.upper(), re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected NAME=USERSxTOKENS (8x32K), found {text!r}")
    return name, (int(match[1]), int(match[2]) * (1024 if match[3] else 1))
