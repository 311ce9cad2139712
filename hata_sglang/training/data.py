"""Training texts: files of texts, chats or token numbers to token sequences."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

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
    written : int
        How many more the model itself writes behind them.
    """

    source: str
    tokens: tuple[int, ...]
    written: int = 0

    def __len__(self) -> int:
        return len(self.tokens) + self.written


def read_sequences(
    files: Sequence[str | Path],
    tokenizer: Any,
    length: int,
    minimum: int,
    vocab_size: int | None = None,
) -> list[TokenSequence]:
    """Turn text files into token sequences.

    Parameters
    ----------
    files : sequence of path
        ``.jsonl``: one object a line, ``{"text": str}``, ``{"tokens": [int,
        ...]}``, or ``{"messages": [...]}`` in OpenAI's form (the tokenizer's
        chat template is applied; kept whole). ``.npy``: integers, one sequence
        (1-D) or one a row (2-D). ``.safetensors``: the same, any number of
        tensors. Any other name: UTF-8 text.
    tokenizer : transformers tokenizer or None
        None if the model has none; then only token numbers can be read.
    length : int
        Tokens of a sequence at most. Text is cut into pieces of this length.
    minimum : int
        Pieces with fewer tokens are left out: their queries see too few keys.
    vocab_size : int, optional
        Of the model; token numbers must be below it.

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
            if vocab_size is not None:
                _check_range(source, tokens, vocab_size)
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
    if path.suffix in (".npy", ".safetensors"):
        for source, tokens in _token_file(path):
            yield source, tokens, False
        return
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a UTF-8 text file, found {error}") from error
    if path.suffix != ".jsonl":
        yield path.name, _text_tokens(path.name, tokenizer, content), False
        return
    for number, line in enumerate(content.splitlines(), start=1):
        source = f"{path.name}:{number}"
        try:
            row = json.loads(line)
            text, messages, tokens = row.get("text"), row.get("messages"), row.get("tokens")
        except (ValueError, AttributeError) as error:
            raise DataError(f"{source}: expected a JSON object, found {line[:40]!r}") from error
        if isinstance(text, str):
            yield source, _text_tokens(source, tokenizer, text), False
        elif isinstance(tokens, list):
            if not all(type(token) is int for token in tokens):
                raise DataError(f"{source}: expected integers in 'tokens', found other values")
            yield source, tokens, False
        elif isinstance(messages, list):
            if tokenizer is None or tokenizer.chat_template is None:
                raise DataError(f"{source}: expected a tokenizer with a chat template, found none")
            chat = tokenizer.apply_chat_template(messages, tokenize=False)
            yield source, _text_tokens(source, tokenizer, chat), True
        else:
            raise DataError(
                f"{source}: expected 'text', 'messages' or 'tokens', found {sorted(row)}"
            )


def _token_file(path: Path) -> Iterator[tuple[str, list[int]]]:
    try:
        if path.suffix == ".npy":
            # allow_pickle=False: an array file must not be able to run anything.
            arrays = {"": torch.from_numpy(np.load(path, allow_pickle=False))}
        else:
            arrays = {f":{name}": tensor for name, tensor in sorted(load_file(path).items())}
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise DataError(f"{path}: expected arrays of token numbers, found {error}") from error
    for name, array in arrays.items():
        source = f"{path.name}{name}"
        kind = f"{str(array.dtype).removeprefix('torch.')} with {array.dim()} dimension(s)"
        integers = not (
            array.is_floating_point() or array.is_complex() or array.dtype == torch.bool
        )
        if not integers or array.dim() not in (1, 2):
            raise DataError(f"{source}: expected integers, 1-D or 2-D, found {kind}")
        if array.dim() == 1:
            yield source, array.tolist()
        else:
            for number, row in enumerate(array, start=1):
                yield f"{source}:{number}", row.tolist()


def _check_range(source: str, tokens: Sequence[int], vocab_size: int) -> None:
    if tokens and not 0 <= min(tokens) <= max(tokens) < vocab_size:
        raise DataError(
            f"{source}: expected token numbers from 0 to {vocab_size - 1} (the model's "
            f"vocabulary), found {min(tokens)} to {max(tokens)}. Tokenise with this model's "
            "tokenizer."
        )


def _text_tokens(source: str, tokenizer: Any, text: str) -> Sequence[int]:
    if tokenizer is None:
        raise DataError(
            f"{source}: expected a tokenizer in the model's folder, found none. Add its files, or "
            "give token numbers (.npy, .safetensors, or .jsonl rows with 'tokens')."
        )
    return encode(tokenizer, text)


def encode(tokenizer: Any, text: str) -> list[int]:
    """The numbers of a text, without special tokens, however long it is."""
    # verbose=False: texts longer than the model's context are cut afterwards.
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def total_tokens(sequences: Iterable[TokenSequence]) -> int:
    """Tokens of all sequences together."""
    return sum(map(len, sequences))
