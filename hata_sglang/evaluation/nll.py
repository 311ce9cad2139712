"""Negative log-likelihood of a text's continuation, decoded through a running server.

A chunk of the text is prefilled, and the tokens behind it are decoded one by one and forced to
be the text's own (`hata_sglang.evaluation.forced`). The first of them comes out of the prefill,
which is dense in every arm; it is decoded, and not counted. Every counted token was thus
predicted by a decode step whose context is at least the asked one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hata_sglang.errors import Refusal
from hata_sglang.evaluation.client import Client
from hata_sglang.evaluation.forced import decode_logprobs
from hata_sglang.evaluation.grading import Question
from hata_sglang.evaluation.tasks.material import NOVEL, unpack
from hata_sglang.training.texts import KINDS, kind_texts

COLUMNS = (
    *("arm", "method", "bits", "budget", "text", "chunk"),
    *("context", "continuation", "nll", "read", "sample"),
)
KEYS = ("arm", "method", "bits", "budget", "text", "context", "continuation", "chunk", "sample")


class Chunk(NamedTuple):
    """A stretch of a text.

    Attributes
    ----------
    index : int
    prompt : tuple of int
        Token ids, prefilled: one less than the context of the first counted token.
    force : tuple of int
        Token ids, decoded; the first is not counted.
    """

    index: int
    prompt: tuple[int, ...]
    force: tuple[int, ...]

    @property
    def sample(self) -> str:
        """Short name of the tokens: the same for the same ones."""
        ids = ",".join(map(str, self.prompt + self.force))
        return hashlib.sha256(ids.encode()).hexdigest()[:12]


def read_text(name: str = NOVEL) -> tuple[str, str]:
    """A text and its name.

    Parameters
    ----------
    name : str
        Path of a file; or the novel that this package ships; or one of the kinds of texts that it
        ships to evaluate by (`hata_sglang.training.texts.KINDS`), one document after the other.

    Raises
    ------
    Refusal
        If the file is missing or not UTF-8.
    """
    if name == NOVEL:
        return NOVEL, unpack(f"{NOVEL}.txt.gz")
    if name in KINDS:
        return name, "\n\n".join(text.plain() for text in kind_texts(name, "test"))
    try:
        return Path(name).stem, Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        expected = f"a readable file in UTF-8, {NOVEL}, {', '.join(KINDS)}"
        raise Refusal.of("--text", expected, str(error)) from None


def make_chunks(
    tokenizer: Any, text: str, count: int, context: int, continuation: int
) -> list[Chunk]:
    """Cut stretches out of a text, spread evenly over it and without overlap.

    Parameters
    ----------
    tokenizer : transformers tokenizer
        A beginning-of-text token, where the tokenizer has one, comes first in every chunk.
    text : str
    count : int
    context : int
        Tokens before the first counted one, at least 3.
    continuation : int
        Tokens that are counted, at least 1.

    Returns
    -------
    list of Chunk

    Raises
    ------
    Refusal
        If the text or the context is too short.
    """
    if context < 3:
        raise Refusal.of("--context", "at least 3", str(context))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    # What the tokenizer puts before any text (Llama's and Gemma's first token), and nothing else.
    first = list(tokenizer("", add_special_tokens=True)["input_ids"])[:1]
    if first and first[0] != getattr(tokenizer, "bos_token_id", None):
        first = []
    size = context + continuation - len(first)
    if len(ids) < count * size:
        expected = f"at least {count} x {size} tokens of text"
        raise Refusal.of("--chunks", expected, f"{len(ids)} tokens")
    stride = (len(ids) - size) // max(count - 1, 1)
    chunks = []
    for index in range(count):
        start = index * stride
        tokens = (*first, *ids[start : start + size])
        chunks.append(Chunk(index, tokens[: context - 1], tokens[context - 1 :]))
    return chunks


def questions(chunks: Iterable[Chunk], text: str) -> list[Question]:
    """Rows to be of chunks of a text of this name.

    The server has the flags `hata_sglang.evaluation.forced.SERVER_FLAGS`.
    """
    return [Question(_row(chunk, text), partial(_ask, chunk)) for chunk in chunks]


def _row(chunk: Chunk, text: str) -> dict[str, Any]:
    return {
        "text": text,
        "chunk": chunk.index,
        "context": len(chunk.prompt) + 1,
        "continuation": len(chunk.force) - 1,
        "sample": chunk.sample,
    }


def _ask(chunk: Chunk, client: Client) -> tuple[int, dict[str, Any]]:
    values = decode_logprobs(client, chunk.prompt, chunk.force)
    return len(chunk.force), {"nll": f"{-sum(values[1:]) / len(values[1:]):.6f}"}
