"""Chats of several turns over passages, lists and problems; later turns go back to earlier ones."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Any

from hata_sglang.training.generated.problems import problem

Message = dict[str, str]
#: Messages of a chat, from and to.
TURNS = (10, 40)


class _Chat:
    """What has been said, and what the next turns can go back to."""

    def __init__(self, rng: random.Random, split: str, words: dict[str, Any]) -> None:
        self.rng, self.split, self.words = rng, split, words
        self.messages: list[Message] = []
        self.paragraphs: list[str] = []  # of the passages
        self.ledger: dict[str, int] = {}
        self.answers: list[tuple[str, str]] = []  # of problems

    def say(self, form: str, **values: Any) -> None:
        """Add a question and its answer in one of the split's wordings."""
        question, answer = self.rng.choice(self.words[form])
        for role, text in (("user", question), ("assistant", answer)):
            self.messages.append({"role": role, "content": text.format(**values)})

    def passage(self, text: str) -> None:
        found = [part.strip() for part in text.split("\n\n")]
        longer = [part for part in found if len(part) > 60]
        self.paragraphs += longer
        opening = _opening(longer[-1] if longer else text)
        self.say("passage", text=text, opening=opening, count=len(found))

    def follow(self) -> None:
        """What stands after a paragraph that is named by its beginning."""
        at = self.rng.randrange(len(self.paragraphs) - 1)
        after = self.paragraphs[at + 1]
        self.say("follow", opening=_opening(self.paragraphs[at]), after=_opening(after, 40))

    def mention(self) -> None:
        """In which paragraph a word stands that no other paragraph has."""
        for _ in range(20):
            paragraph = self.rng.choice(self.paragraphs)
            words = sorted(set(re.findall(r"\w{6,}", paragraph)))
            if not words:
                continue
            word = self.rng.choice(words)
            if sum(word in other for other in self.paragraphs) == 1:
                self.say("mention", word=word, quote=_opening(paragraph, 25))
                return
        self.follow()

    def note(self) -> None:
        item, number = self.rng.choice(self.words["items"]), self.rng.randint(2, 480)
        before = self.ledger.get(item, 0)
        self.ledger[item] = before + number
        self.say("note" if not before else "more", item=item, number=number, now=before + number)

    def total(self) -> None:
        if len(self.ledger) < 2:
            return self.note()
        lines = "\n".join(f"- {item}: {number}" for item, number in self.ledger.items())
        self.say("total", lines=lines, total=sum(self.ledger.values()))

    def solve(self) -> None:
        made = problem(self.rng, self.split)
        self.answers.append((made.statement, made.answer))
        self.say("solve", statement=made.statement, solution=made.solution, answer=made.answer)

    def recall(self) -> None:
        """An earlier question, word for word, or an earlier problem's answer."""
        if self.answers and self.rng.random() < 0.5:
            number = self.rng.randrange(len(self.answers))
            statement, answer = self.answers[number]
            return self.say("result", number=number + 1, statement=statement, answer=answer)
        asked = [m["content"] for m in self.messages if m["role"] == "user"]
        number = self.rng.randrange(len(asked))
        self.say("recall", number=number + 1, quote=_opening(asked[number], 40))


def _opening(text: str, count: int = 9) -> str:
    """The first words of a text, at most 300 characters."""
    return " ".join(text.split()[:count])[:300]


def chat(
    rng: random.Random,
    split: str,
    words: dict[str, Any],
    passages: Sequence[str],
    characters: int,
    dialogue: Sequence[str] = (),
) -> list[Message]:
    """Make one chat.

    Parameters
    ----------
    rng : random.Random
    split : {"train", "test"}
    words : dict
        The split's part of ``chats`` in ``data/wording.yaml``.
    passages : sequence of str
        Long texts that the user pastes parts of.
    characters : int
        Of the chat, about.
    dialogue : sequence of str
        Turns that it begins with, the user's first.

    Returns
    -------
    list of dict
        Messages in OpenAI's form, of `TURNS`, the user's first and an assistant's last.
    """
    made = _Chat(rng, split, words)
    roles = ("user", "assistant")
    made.messages += [{"role": roles[n % 2], "content": t} for n, t in enumerate(dialogue)]
    # Long chats take more turns and more passages rather than one passage beyond any text.
    fewest = max(TURNS[0] // 2, len(dialogue) // 2 + 4, min(16, characters // 8000))
    left = rng.randint(fewest, TURNS[1] // 2) - len(dialogue) // 2
    pasted = max(1, left // 5, min(left // 2, characters // 12_000))
    share = max(800, (characters - 350 * (left - pasted)) // pasted)
    moves: list[Callable[[], None]] = [
        *(made.follow, made.mention, made.note, made.note, made.total, made.solve, made.recall)
    ]
    text = rng.choice(passages)
    for number in range(left):
        if number % (left // pasted) == 0 and number // (left // pasted) < pasted:
            if rng.random() < 0.4:
                text = rng.choice(passages)
            start = rng.randrange(max(1, len(text) - share))
            start = text.find("\n", start) + 1  # a whole line, or the beginning
            made.passage(text[start : start + share].strip())
            continue
        able = [m for m in moves if len(made.paragraphs) > 2 or m not in moves[:2]]
        rng.choice(able)()
    return made.messages
