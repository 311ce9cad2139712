"""Running tasks against one server: what is asked, what is kept, and whether it was sparse."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hata_sglang.errors import Refusal
from hata_sglang.evaluation.client import Client, Reply
from hata_sglang.evaluation.metrics import METRICS
from hata_sglang.evaluation.results import ResultFile
from hata_sglang.evaluation.sparsity import Arm, check_sparsity, steps_of
from hata_sglang.evaluation.tasks import TASKS, Sample, make_task

#: The thirteen tasks of RULER (arXiv 2404.06654, table 1).
RULER = (
    *(f"niah_single_{n}" for n in (1, 2, 3)),
    *(f"niah_multikey_{n}" for n in (1, 2, 3)),
    "niah_multivalue",
    "niah_multiquery",
    "vt",
    "cwe",
    "fwe",
    "qa_1",
    "qa_2",
)
COLUMNS = (
    "arm",
    "method",
    "bits",
    "budget",
    "task",
    "length",
    "index",
    "depth",
    "score",
    "prompt_tokens",
    "new_tokens",
    "read",
    "prediction",
    "reference",
    "seed",
    "sample",
)
KEYS = ("arm", "method", "bits", "budget", "task", "length", "index", "seed", "sample")
TEXT_LIMIT = 200


def task_names(words: Iterable[str]) -> list[str]:
    """Names of tasks out of names and groups, each once, in this order.

    The only group is ``ruler``.

    Raises
    ------
    Refusal
        If a word is neither.
    """
    names: dict[str, None] = {}
    for word in words:
        if word not in TASKS and word != "ruler":
            known = ", ".join(sorted({"ruler", *TASKS}))
            raise Refusal.of("--tasks", f"some of {known}", repr(word))
        names.update(dict.fromkeys(RULER if word == "ruler" else [word]))
    return list(names)


def make_samples(
    name: str, count: int, length: int, tokenizer: Any, seed: int, data: Mapping[str, str]
) -> list[Sample]:
    """Samples of one task, with the user's file or folder where it takes one.

    Parameters
    ----------
    name : str
        Key of `TASKS`.
    count, length, tokenizer, seed
        See `hata_sglang.evaluation.tasks.base.Task.samples`.
    data : mapping of str to str
        Paths by task.

    Raises
    ------
    TaskUnavailable
        If the task's file is missing.
    """
    task = make_task(name, path=data[name]) if name in data else make_task(name)
    return task.samples(count, length, tokenizer, seed)


def row_of(arm: Arm, sample: Sample, length: int, seed: int) -> dict[str, Any]:
    """The columns of a sample that are known before it is asked."""
    text = "\0".join((sample.prompt, sample.opening, *sample.references))
    return {
        **arm.columns(),
        "task": sample.task,
        "length": length,
        "index": sample.index,
        "depth": sample.info.get("depth", ""),
        "seed": seed,
        # Pairs samples between files: an index may mean another prompt when --samples changes.
        "sample": hashlib.sha256(text.encode()).hexdigest()[:12],
    }


def scored(row: dict[str, Any], sample: Sample, answer: Reply, read: str) -> dict[str, Any]:
    """A whole row: `row_of` with what came of it."""
    score = METRICS[sample.metric](answer.text, sample.references)
    return {
        **row,
        "score": f"{score:.6g}",
        "prompt_tokens": answer.prompt_tokens,
        "new_tokens": answer.new_tokens,
        "read": read,
        "prediction": answer.text[:TEXT_LIMIT],
        "reference": " | ".join(sample.references)[:TEXT_LIMIT],
    }


def ask(client: Client, sample: Sample) -> Reply:
    """Let a server answer a sample; the opening is sent as the start of the answer.

    SGLang goes on from it (``continue_final_message``).
    """
    messages = [{"role": "user", "content": sample.prompt}]
    options = {}
    if sample.opening:
        messages.append({"role": "assistant", "content": sample.opening})
        options["continue_final_message"] = True
    return client.chat(messages, sample.new_tokens, **options)


def batches(samples: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Consecutive parts of `size`, the last one shorter."""
    for start in range(0, len(samples), size):
        yield samples[start : start + size]


def run_samples(
    client: Client,
    arm: Arm,
    samples: Sequence[Sample],
    length: int,
    seed: int,
    results: ResultFile,
    *,
    concurrency: int = 1,
    on_rows: Callable[[int], None] | None = None,
) -> int:
    """Ask the samples that are not in `results` yet, and append their scores.

    Rows are written after the server's counters have shown that their answers were decoded as
    `arm` says, four times `concurrency` at a time.

    Parameters
    ----------
    client : Client
        Of a server that serves nobody else.
    arm : Arm
        What it runs.
    samples : sequence of Sample
        Of one task.
    length, seed : int
        That they were made with.
    results : ResultFile
        With `COLUMNS`.
    concurrency : int, default 1
        Requests at the same time.
    on_rows : callable, optional
        Called with the number of rows after every batch, and of those that were there already.

    Returns
    -------
    int
        Samples asked.

    Raises
    ------
    HataError
        If a sparse arm was not sparse, or a dense one has hata's counters.
    """
    todo = [(sample, row_of(arm, sample, length, seed)) for sample in samples]
    todo = [(sample, row) for sample, row in todo if not results.has(row)]
    if on_rows is not None:
        on_rows(len(samples) - len(todo))
    with ThreadPoolExecutor(concurrency) as pool:
        for batch in batches(todo, 4 * concurrency):
            before = client.counters()
            answers = list(pool.map(lambda pair: ask(client, pair[0]), batch))
            steps = steps_of(answer.new_tokens for answer in answers)
            what = f"{batch[0][0].task}, length {length}"
            read = check_sparsity(arm, before, client.counters(), steps, what)
            rows = [
                scored(row, sample, answer, read)
                for (sample, row), answer in zip(batch, answers, strict=True)
            ]
            results.append(rows)
            if on_rows is not None:
                on_rows(len(rows))
    return len(todo)
