"""Training texts for the demo model, built from what every Python and this package carry.

A part of the rows is plain text: Python's own documentation (``pydoc`` topics
and docstrings of the standard library, PSF licence) and chapters of a novel in
the public domain. The others are chats in the model's template: a long document
with facts hidden in it, followed by questions and answers, so that the captured
queries include the ones that look a fact up. No document, name, wording or
chapter is in two of the three splits (train, validation, held_out). The same
seed, Python and tokenizer give the same bytes.

Run: ``python -m hata_sglang.training.demo_corpus --model DIR --out DIR``
"""

from __future__ import annotations

import argparse
import ast
import gzip
import json
import random
import sysconfig
import textwrap
import zlib
from collections.abc import Iterator
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import yaml

DESCRIPTION = (
    "pydoc topics and docstrings of Python's standard library (PSF licence), the first half of "
    "Austen's Persuasion, generated prose, and chats that ask for facts hidden in documents "
    "(hata_sglang/training/demo_corpus.py)"
)
SKIPPED_FOLDERS = {"test", "tests", "idlelib", "site-packages", "dist-packages", "__pycache__"}
# Of eight documents six are trained on, one validates, one is held out.
SHARES = {0: "held_out", 4: "validation"}


@lru_cache(maxsize=1)
def phrases() -> dict[str, dict[str, list]]:
    """Words and sentence patterns by split: ``data/demo_phrases.yaml``, which describes them."""
    path = files("hata_sglang.training").joinpath("data/demo_phrases.yaml")
    return yaml.safe_load(path.read_text("utf-8"))


@lru_cache(maxsize=3)
def library_texts(split: str) -> tuple[str, ...]:
    """Documents from this Python's documentation, in a fixed shuffled order.

    Parameters
    ----------
    split : {"train", "validation", "held_out"}
        A document belongs to one split only, by a checksum of its name.

    Returns
    -------
    tuple of str
        Topics of ``pydoc`` and, per module of the standard library, its
        docstrings of more than 200 characters.
    """
    documents = _documents()
    # Some topics have two names; one of them decides for both.
    first = {text: name for name, text in reversed(documents.items())}
    names = [
        n for n, t in documents.items() if SHARES.get(_checksum(first[t]) % 8, "train") == split
    ]
    names.sort(key=lambda name: (_checksum("order " + name), name))
    return tuple(documents[name] for name in names)


@lru_cache(maxsize=1)
def _documents() -> dict[str, str]:
    documents = {f"topic {name}": text for name, text in topics.items()}
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if not SKIPPED_FOLDERS.intersection(parts):
            text = "\n\n".join(d for d in _docstrings(path) if len(d) > 200)
            if text:
                documents["module " + "/".join(parts)] = text
    return documents


def _checksum(text: str) -> int:
    return zlib.crc32(text.encode())


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):  # a few files of the library are broken on purpose
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""


def prose(rng: random.Random, split: str) -> str:
    """One generated paragraph of five to nine sentences."""
    words = phrases()[split]
    place, pair = rng.choice(words["places"]), rng.sample(words["people"], 2)
    sentences = []
    for template in rng.sample(words["sentences"], rng.randint(5, 9)):
        rng.shuffle(pair)
        sentence = template.format(
            person=pair[0],
            other=pair[1],
            place=place,
            thing=rng.choice(words["things"]),
            quality=rng.choice(words["qualities"]),
            season=rng.choice(words["seasons"]),
            number=rng.randint(2, 90),
        )
        sentences.append(sentence[0].upper() + sentence[1:])
    return " ".join(sentences)


def paragraphs(rng: random.Random, split: str) -> Iterator[str]:
    """Endless filler for documents: runs of library text and runs of prose."""
    library = library_texts(split)
    while True:
        if rng.random() < 0.4:
            text = rng.choice(library)
            blocks = [b.strip() for b in text.split("\n\n") if len(b) > 80]
            if blocks:
                start = rng.randrange(len(blocks))
                for block in blocks[start : start + 8]:
                    yield textwrap.shorten(block, 700, placeholder=" ...")
        else:
            for _ in range(rng.randint(3, 8)):
                yield prose(rng, split)


def facts(rng: random.Random, split: str, count: int) -> list[tuple[str, str, str]]:
    """Facts that can be hidden and asked for.

    Returns
    -------
    list of (statement, question, answer)
        No two about the same subject.
    """
    words = phrases()[split]
    made: dict[tuple[str, str], tuple[str, str, str]] = {}
    while len(made) < count:
        patterns = words["facts"][rng.randrange(len(words["facts"]))]
        statement = patterns["statement"]
        subject = rng.choice(words["people" if "{person}" in statement else "places"])
        digits = rng.choice([3, 4, 5])
        values = {
            "person": subject,
            "place": subject,
            "value": str(rng.randrange(10 ** (digits - 1), 10**digits)),
            "word": rng.choice(words["things"]),
        }
        row = tuple(patterns[p].format(**values) for p in ("statement", "question", "answer"))
        made.setdefault((statement, subject), row)
    return list(made.values())


def chat(rng: random.Random, split: str, tokenizer: Any, length: int) -> list[dict[str, str]]:
    """One chat: a document with hidden facts, then questions and answers.

    Parameters
    ----------
    rng : random.Random
    split : {"train", "validation", "held_out"}
    tokenizer : transformers tokenizer
        Used to reach the length.
    length : int
        Tokens of the chat in the model's template, at most.

    Returns
    -------
    list of dict
        Messages in OpenAI's form.
    """
    hidden = facts(rng, split, 10)
    asked = rng.sample(hidden, 8)
    opening = rng.choice(phrases()[split]["openings"])
    turns = [
        {"role": role, "content": content}
        for _, question, answer in asked
        for role, content in (("user", question), ("assistant", answer))
    ]

    def assemble(blocks: list[str]) -> list[dict[str, str]]:
        document = list(blocks)
        for number, (statement, _, _) in enumerate(hidden):
            depth = number * len(blocks) // len(hidden) + number
            document.insert(depth, statement)
        first = f"{opening}\n\n" + "\n\n".join(document) + f"\n\n{asked[0][1]}"
        return [{"role": "user", "content": first}, *turns[1:]]

    blocks: list[str] = []
    used = _length(tokenizer, assemble(blocks))
    for block in paragraphs(rng, split):
        # Tokens add up across blank lines but for one or two, hence the slack below.
        used += len(tokenizer(block, add_special_tokens=False)["input_ids"]) + 1
        if used > length - 32:
            break
        blocks.append(block)
    messages = assemble(blocks)
    while _length(tokenizer, messages) > length:
        blocks.pop()
        messages = assemble(blocks)
    return messages


def _length(tokenizer: Any, messages: list[dict[str, str]]) -> int:
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def plain(start: int, split: str, tokenizer: Any, length: int) -> str:
    """Library documents joined to at least `length` tokens, from document `start` on."""
    texts = library_texts(split)
    joined, used = [], 0
    for offset in range(len(texts)):
        text = texts[(start + offset) % len(texts)]
        joined.append(text)
        used += len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        if used >= length:
            break
    ids = tokenizer("\n\n".join(joined), add_special_tokens=False, verbose=False)["input_ids"]
    return tokenizer.decode(ids[:length])


def novel(tokenizer: Any, length: int, rows: int) -> list[str]:
    """The first `rows` pieces of `length` tokens of the novel, one after the other.

    Raises
    ------
    ValueError
        If the novel is shorter.
    """
    packed = files("hata_sglang.training").joinpath("data/persuasion.txt.gz").read_bytes()
    text = gzip.decompress(packed).decode("utf-8")
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < rows * length:
        raise ValueError(f"novel: expected {rows * length} tokens, found {len(ids)}")
    return [tokenizer.decode(ids[n * length : (n + 1) * length]) for n in range(rows)]


def write_corpus(
    folder: Path, tokenizer: Any, length: int, chats: int, plains: int, novels: int, seed: int
) -> None:
    """Write ``train.jsonl``, ``validation.jsonl`` and ``held_out.jsonl``.

    Parameters
    ----------
    folder : Path
        Made if missing.
    tokenizer : transformers tokenizer
        With a chat template.
    length : int
        Tokens of a row at most. Chats take between 70 % of it and all of it.
    chats, plains, novels : int
        Rows of each kind in ``train.jsonl``; each of the others has two chats, two plain texts
        and the next piece of the novel.
    seed : int
    """
    folder.mkdir(parents=True, exist_ok=True)
    pieces = novel(tokenizer, length, novels + 2)
    for split, chat_rows, plain_rows, chapters in (
        ("train", chats, plains, pieces[:-2]),
        ("validation", 2, 2, pieces[-2:-1]),
        ("held_out", 2, 2, pieces[-1:]),
    ):
        rng = random.Random(f"{split} {seed}")
        rows: list[dict[str, Any]] = [{"text": text} for text in chapters]
        # Rows start far enough apart to share no document, in the small splits too.
        apart = min(40, len(library_texts(split)) // max(1, plain_rows))
        for number in range(plain_rows):
            rows.append({"text": plain(number * apart, split, tokenizer, length)})
        for number in range(chat_rows):
            share = 1.0 if number % 2 == 0 else rng.uniform(0.7, 1.0)
            rows.append({"messages": chat(rng, split, tokenizer, int(length * share))})
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def main() -> None:
    """Command line of this module."""
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description="Build the demo model's training texts.")
    parser.add_argument("--model", type=Path, required=True, help="checkpoint with its tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="folder for the three .jsonl files")
    parser.add_argument("--length", type=int, default=6144, help="tokens per row (default 6144)")
    parser.add_argument("--chats", type=int, default=6, help="chats to train on (default 6)")
    parser.add_argument("--plains", type=int, default=3, help="plain texts to train on (default 3)")
    parser.add_argument("--novels", type=int, default=3, help="pieces of the novel (default 3)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    write_corpus(args.out, tokenizer, args.length, args.chats, args.plains, args.novels, args.seed)
    print(f"wrote train.jsonl, validation.jsonl and held_out.jsonl into {args.out}")


if __name__ == "__main__":
    main()
