"""Which texts train, which choose the training step, and which are reported: three splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from hata_sglang.training.data import DataError, TokenSequence, read_sequences, total_tokens
from hata_sglang.training.options import TrainOptions
from hata_sglang.training.texts import training_sequences

T = TypeVar("T")
SPLITS = ("train", "validation", "held_out")
Splits = dict[str, list[TokenSequence]]
FLAGS = {"train": "--data", "validation": "--validation", "held_out": "--held-out"}


@dataclass(frozen=True)
class SplitFiles:
    """Files of each split, as `data.read_sequences` takes them.

    Attributes
    ----------
    train : sequence of path
        To learn from. Empty: the package's own texts (`own_splits`).
    validation : sequence of path
        The best step is chosen, and training stopped, by the attention mass on these. Empty:
        by that on a part of `train`, which is not trained on then.
    held_out : sequence of path
        Measured once, at the end, for the card. Empty: a part of `train`, likewise.
    """

    train: Sequence[str | Path]
    validation: Sequence[str | Path] = ()
    held_out: Sequence[str | Path] = ()


def read_splits(
    files: SplitFiles, tokenizer: Any, options: TrainOptions, vocab_size: int
) -> Splits:
    """Tokenise the texts of all three splits.

    Without files to train on, the package's own texts are taken. With them, a split without files
    of its own gets a tenth of the training texts, at least one: the last ones are held out, those
    before them validate. Texts stay whole if there are enough of them; one or two long texts are
    shared out by their sequences.

    Parameters
    ----------
    files : SplitFiles
    tokenizer : transformers tokenizer or None
    options : TrainOptions
        Their `sequence_length`, `minimum_length`, `own_tokens` and `seed` are used.
    vocab_size : int

    Returns
    -------
    dict of str to list of TokenSequence
        A key for each of `SPLITS`, none of them empty.

    Raises
    ------
    DataError
        If the texts cannot be used, are too few, or a text is in two splits.
    """
    limits = (options.sequence_length, options.minimum_length, vocab_size)
    splits: Splits = {} if files.train else own_splits(tokenizer, options)
    for split in SPLITS:
        if names := getattr(files, split):
            splits[split] = read_sequences(names, tokenizer, *limits)
    _share_out(splits, options.minimum_length)
    _check_disjoint(splits)
    return splits


def last_tenths(items: Sequence[T]) -> tuple[list[T], list[T], list[T]]:
    """Share out what came one after the other, as texts are: in the order of `SPLITS`.

    The last tenth is held out, the one before it validates; each is one at least.
    """
    share = max(1, len(items) // 10)
    return list(items[: -2 * share]), list(items[-2 * share : -share]), list(items[-share:])


def own_splits(tokenizer: Any, options: TrainOptions) -> Splits:
    """Cut the package's own texts into the three splits.

    Of each kind one sequence validates, and one of the texts to evaluate by, which are from other
    sources, is held out. Of those to train on, the end of one of each kind is what the model itself
    writes in place of the text's: what decoding attends to.

    Raises
    ------
    DataError
        If there is no tokenizer, or too little text for the sequences that are asked for.
    """
    if tokenizer is None:
        raise DataError(
            "training texts: expected --data FILE, because the model's folder has no tokenizer to "
            "make numbers of the package's own texts, found none"
        )
    length = options.sequence_length
    count = max(1, options.own_tokens // length)
    limits = {"length": length, "seed": options.seed}
    found = training_sequences(tokenizer, per_kind=count + 1, **limits)
    kept, validating = [], []
    for number, sequence in enumerate(found):
        if number % (count + 1) == count:
            validating.append(sequence)
        elif number % (count + 1) == 0 and options.own_written:
            tokens = sequence.tokens[: -options.own_written]
            kept.append(replace(sequence, tokens=tokens, written=options.own_written))
        else:
            kept.append(sequence)
    held_out = training_sequences(tokenizer, per_kind=1, split="test", **limits)
    return {"train": kept, "validation": validating, "held_out": held_out}


def _share_out(splits: Splits, minimum: int) -> None:
    """Give splits without files of their own a part of the training texts."""
    without = [split for split in SPLITS if split not in splits]
    needed = 1 + len(without)
    texts = [list(text) for _, text in groupby(splits["train"], key=lambda s: s.source)]
    if len(texts) < needed:
        texts = [[sequence] for sequence in splits["train"]]
    if len(texts) < needed:
        flags = " and ".join(f"{FLAGS[split]} FILE" for split in without)
        raise DataError(
            f"training texts: expected at least {needed} of {minimum} tokens or more (to train "
            "on, to choose the training step by, and to report on, each on texts of its own), "
            f"found {len(texts)}. Give more texts or {flags}, or lower --minimum-length."
        )
    share = max(1, len(texts) // 10)
    for split in reversed(without):
        splits[split] = [sequence for text in texts[-share:] for sequence in text]
        del texts[-share:]
    splits["train"] = [sequence for text in texts for sequence in text]


def _check_disjoint(splits: Splits) -> None:
    seen: dict[tuple[int, ...], tuple[str, str]] = {}
    for split in SPLITS:
        for sequence in splits[split]:
            other, source = seen.setdefault(sequence.tokens, (split, sequence.source))
            if other != split:
                raise DataError(
                    f"training texts: expected none in two of {', '.join(FLAGS.values())}, found "
                    f"the same text in {FLAGS[other]} ({source}) and {FLAGS[split]} "
                    f"({sequence.source}); a tenth of --data stands in for each of the others "
                    "that is not given. Remove one of the two."
                )


def describe_splits(splits: Splits) -> str:
    """One line for people: how much text is of which split."""
    words = {"train": "to train on", "validation": "to choose the step by", "held_out": "held out"}
    parts = (
        f"{len(splits[split])} {word} ({total_tokens(splits[split]):,} tokens)"
        for split, word in words.items()
    )
    written = sum(sequence.written for sequence in splits["train"])
    more = f"; the model itself writes {written:,} of the tokens" if written else ""
    return f"sequences: {', '.join(parts)}{more}"
