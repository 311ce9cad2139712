"""Training texts: files to token sequences."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hata_sglang.errors import HataError


class DataError(HataError):
    """Training texts that cannot be used; the message says what to do."""


@dataclass(frozen=True)
class TokenSequence:
    """One sequence to run the model on.

    Attributes
    ----------
    source : str
        File name and row, for messages.
    tokens : tuple of int
    """

    source: str
    tokens: tuple[int, ...]


def read_sequences(
    files: Sequence[str | Path], tokenizer: Any, length: int, minimum: int
) -> list[TokenSequence]:
    """Turn text files into token sequences.

    Parameters
    ----------
    files : sequence of path
        ``.jsonl``: one object a line, ``{"text": str}`` or ``{"messages":
        [...]}`` in OpenAI's form (the tokenizer's chat template is applied;
        kept whole). Any other name: UTF-8 text.
    tokenizer : transformers tokenizer
    length : int
        Tokens of a sequence at most. Text is cut into pieces of this length.
    minimum : int
        Pieces with fewer tokens are left out: their queries see too few keys.

    Returns
    -------
    list of TokenSequence
        In the order of the files and their rows; at least one.

    Raises
    ------
    DataError
        If a file cannot be read, a row has another form, a chat is longer than
        `length`, or no sequence is left.
    """
    sequences: list[TokenSequence] = []
    longest = 0
    for file in files:
        for source, tokens, whole in _tokenize(Path(file), tokenizer):
            longest = max(longest, len(tokens))
            if whole and len(tokens) > length:
                raise DataError(
                    f"{source}: expected a chat of at most {length} tokens (--sequence-length), "
                    f"found {len(tokens)}"
                )
            for start in range(0, len(tokens), length):
                piece = tuple(tokens[start : start + length])
                if len(piece) >= minimum:
                    sequences.append(TokenSequence(source, piece))
    if not sequences:
        raise DataError(
            f"training texts: expected at least one text of {minimum} tokens or more, "
            f"found {longest} tokens in the longest of {len(files)} file(s). "
            "Give longer texts or lower --minimum-length."
        )
    return sequences


def _tokenize(path: Path, tokenizer: Any) -> Iterator[tuple[str, Sequence[int], bool]]:
    """Yield source, tokens, and whether the sequence has to stay whole."""
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a UTF-8 text file, found {error}") from error
    if path.suffix != ".jsonl":
        yield path.name, _encode(tokenizer, content), False
        return
    for number, line in enumerate(content.splitlines(), start=1):
        source = f"{path.name}:{number}"
        try:
            row = json.loads(line)
            text, messages = row.get("text"), row.get("messages")
        except (ValueError, AttributeError) as error:
            raise DataError(f"{source}: expected a JSON object, found {line[:40]!r}") from error
        if isinstance(text, str):
            yield source, _encode(tokenizer, text), False
        elif isinstance(messages, list):
            if tokenizer.chat_template is None:
                raise DataError(f"{source}: expected a tokenizer with a chat template, found none")
            chat = tokenizer.apply_chat_template(messages, tokenize=False)
            yield source, _encode(tokenizer, chat), True
        else:
            raise DataError(f"{source}: expected 'text' or 'messages', found {sorted(row)}")


def _encode(tokenizer: Any, text: str) -> Sequence[int]:
    # verbose=False: texts longer than the model's context are cut afterwards.
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def total_tokens(sequences: Iterable[TokenSequence]) -> int:
    """Tokens of all sequences together."""
    return sum(len(sequence.tokens) for sequence in sequences)
