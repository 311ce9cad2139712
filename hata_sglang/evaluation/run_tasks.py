"""Running tasks against one server: what is asked, and what is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from hata_sglang.errors import Refusal
from hata_sglang.evaluation.client import Client
from hata_sglang.evaluation.grading import grade
from hata_sglang.evaluation.results import ResultFile
from hata_sglang.evaluation.sparsity import Arm
from hata_sglang.evaluation.tasks import TASKS, Sample

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
    """Names of tasks out of names and ``ruler``, which stands for all, each once, in this order.

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
        names.update(dict.fromkeys(TASKS if word == "ruler" else [word]))
    return list(names)


def run_samples(
    client: Client,
    arm: Arm,
    samples: Sequence[Sample],
    length: int,
    seed: int,
    results: ResultFile,
    **options: Any,
) -> int:
    """Ask the samples of one task that are not in `results` yet, and append their scores.

    Parameters
    ----------
    client, arm
        As in `hata_sglang.evaluation.grading.grade`, whose errors are raised.
    samples : sequence of Sample
    length, seed : int
        That they were made with.
    results : ResultFile
        With `COLUMNS`.
    **options
        ``concurrency`` and ``on_rows`` of `grade`.

    Returns
    -------
    int
        Samples asked.
    """

    def ask(sample: Sample) -> tuple[int, dict[str, Any]]:
        # SGLang goes on from an assistant's message that is begun.
        messages, more = [{"role": "user", "content": sample.prompt}], {}
        if sample.opening:
            messages.append({"role": "assistant", "content": sample.opening})
            more["continue_final_message"] = True
        reply = client.chat(messages, sample.new_tokens, **more)
        return reply.new_tokens, {
            "score": f"{sample.score(reply.text):.6g}",
            "prompt_tokens": reply.prompt_tokens,
            "new_tokens": reply.new_tokens,
            "prediction": reply.text[:TEXT_LIMIT],
        }

    def row(sample: Sample) -> dict[str, Any]:
        text = "\0".join((sample.prompt, sample.opening, *sample.references))
        return {
            **arm._asdict(),
            "task": sample.task,
            "length": length,
            "index": sample.index,
            "depth": sample.info.get("depth", ""),
            "reference": " | ".join(sample.references)[:TEXT_LIMIT],
            "seed": seed,
            # Pairs samples between files: an index may mean another prompt when --samples changes.
            "sample": hashlib.sha256(text.encode()).hexdigest()[:12],
        }

    questions = [(row(sample), partial(ask, sample)) for sample in samples]
    what = f"{samples[0].task}, length {length}"
    return grade(client, arm, questions, results, what, batch=4, **options)
