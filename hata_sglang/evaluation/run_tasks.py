"""Running tasks against one server: what is asked, and what is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import partial
from typing import Any

from hata_sglang.evaluation.client import Client
from hata_sglang.evaluation.grading import Question
from hata_sglang.evaluation.tasks import Sample

COLUMNS = (
    *("arm", "method", "bits", "budget", "task", "length", "index", "depth", "score"),
    *("prompt_tokens", "new_tokens", "read", "prediction", "reference", "seed", "sample"),
)
KEYS = ("arm", "method", "bits", "budget", "task", "length", "index", "seed", "sample")
TEXT_LIMIT = 200


def questions(samples: Iterable[Sample], length: int, seed: int) -> list[Question]:
    """Rows to be of samples of one task, which were made with this length and seed."""
    return [Question(_row(sample, length, seed), partial(_ask, sample)) for sample in samples]


def _row(sample: Sample, length: int, seed: int) -> dict[str, Any]:
    text = "\0".join((sample.prompt, sample.opening, *sample.references))
    return {
        "task": sample.task,
        "length": length,
        "index": sample.index,
        "depth": sample.depth,
        "reference": " | ".join(sample.references)[:TEXT_LIMIT],
        "seed": seed,
        # Pairs samples between files: an index may mean another prompt when --samples changes.
        "sample": hashlib.sha256(text.encode()).hexdigest()[:12],
    }


def _ask(sample: Sample, client: Client) -> tuple[int, dict[str, Any]]:
    reply = sample.ask(client)
    return reply.new_tokens, {
        "score": f"{sample.score(reply.text):.6g}",
        "prompt_tokens": reply.prompt_tokens,
        "new_tokens": reply.new_tokens,
        "prediction": reply.text[:TEXT_LIMIT],
    }
