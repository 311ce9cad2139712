"""Benchmarks from local JSONL files: reading, choosing and cutting records, for all of them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from hata_sglang.errors import HataError
from hata_sglang.evaluation.tasks.base import TaskUnavailable

Record = dict[str, Any]


def definitions(name: str) -> dict[str, dict[str, Any]]:
    """The published definitions in ``data/<name>.yaml``, by set."""
    path = files("hata_sglang.evaluation.tasks") / "data" / f"{name}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def read_records(task: str, folder: str, file: str, fields: tuple[str, ...]) -> list[Record]:
    """Read one file of a benchmark.

    Parameters
    ----------
    task : str
        For messages.
    folder : str
        Where the benchmark was unpacked; empty if the user did not say.
    file : str
        Name of the JSONL file in `folder`, or in its sub-folder ``data``.
    fields : tuple of str
        What every record must have.

    Returns
    -------
    list of dict
        Not empty.

    Raises
    ------
    TaskUnavailable
        If there is no such file.
    HataError
        If a line is not JSON or lacks a field.
    """
    group = task.partition("/")[0]
    if not folder:
        raise TaskUnavailable(
            f"{task}: expected --data {group}=FOLDER with {file}, found no such option"
        )
    places = [Path(folder) / file, Path(folder) / "data" / file]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise TaskUnavailable(f"{task}: expected a file {places[0]} or {places[1]}, found neither")
    records = []
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise HataError(f"{path}:{number}: expected JSON, found {error.msg}") from None
            missing = [field for field in fields if field not in record]
            if missing:
                raise HataError(
                    f"{path}:{number}: expected the fields {', '.join(fields)}, "
                    f"found none of the name {', '.join(missing)}"
                )
            records.append(record)
    if not records:
        raise HataError(f"{path}: expected at least one record, found an empty file")
    return records


def choose(records: list[Record], count: int, seed: int) -> list[tuple[int, Record]]:
    """Records in an order that `seed` decides, with their places in the file.

    A larger count adds to a smaller one's records and changes none.

    Raises
    ------
    HataError
        If there are fewer than `count` records.
    """
    if not 1 <= count <= len(records):
        raise HataError(f"count: expected 1 to {len(records)} (records in the file), found {count}")
    order = list(range(len(records)))
    random.Random(f"records {seed}").shuffle(order)
    return [(place, records[place]) for place in order[:count]]


def cut_middle(
    prompt: str, room: int, tokenizer: Any, tokens_of: Callable[[str], int]
) -> tuple[str, int]:
    """Leave out the middle of a prompt that is too long, as LongBench and InfiniteBench do.

    Instruction and question stand at the ends of their prompts.

    Parameters
    ----------
    prompt : str
    room : int
        Tokens that `tokens_of` may count.
    tokenizer : transformers tokenizer
    tokens_of : callable
        Length of a prompt with what is put around it, in tokens.

    Returns
    -------
    prompt : str
    tokens : int
        What `tokens_of` counts.

    Raises
    ------
    HataError
        If nothing is left of the prompt.
    """
    tokens = tokens_of(prompt)
    if tokens <= room:
        return prompt, tokens
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    keep = len(ids) - (tokens - room)
    while keep >= 2:
        half = keep // 2
        cut = "".join(
            tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:half], ids[-half:])
        )
        tokens = tokens_of(cut)
        if tokens <= room:
            return cut, tokens
        keep -= max(tokens - room, 2)  # the seam can make other tokens than there were
    raise HataError(f"length: expected more room than for the frame of a prompt, found {room}")
