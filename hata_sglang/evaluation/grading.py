"""Asking a server in batches: no row is written before its counters have said what they decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from hata_sglang.evaluation.client import Client
from hata_sglang.evaluation.results import ResultFile
from hata_sglang.evaluation.sparsity import Arm, check_sparsity

#: Questions between two looks at the counters, over the requests at a time.
BATCH = 4


class Question(NamedTuple):
    """One row that is to be.

    Attributes
    ----------
    row : dict
        Columns that are known before, without those of the arm.
    ask : callable
        Asks a client: gives the tokens that were decoded for the answer, and the other columns.
    """

    row: dict[str, Any]
    ask: Callable[[Client], tuple[int, dict[str, Any]]]


def grade(
    client: Client,
    arm: Arm,
    questions: Sequence[Question],
    results: ResultFile,
    *,
    concurrency: int = 1,
    on_rows: Callable[[int], object] = lambda _: None,
) -> None:
    """Ask what is not in `results` yet, and append its rows.

    Parameters
    ----------
    client : Client
        Of a server that serves nobody else.
    arm : Arm
        What it runs.
    questions : sequence of Question
    results : ResultFile
        Its rows get the columns of the arm and ``read``, too.
    concurrency : int, default 1
        Requests at the same time.
    on_rows : callable, optional
        Called with the number of rows after every batch, and of those that were there already.

    Raises
    ------
    HataError
        If a sparse arm was not sparse, or a dense one has hata's counters.
    """
    todo = [each for each in questions if not results.has({**arm._asdict(), **each.row})]
    on_rows(len(questions) - len(todo))
    size = BATCH * concurrency
    with ThreadPoolExecutor(concurrency) as pool:
        for start in range(0, len(todo), size):
            part = todo[start : start + size]
            before = client.counters()
            answers = list(pool.map(lambda question: question.ask(client), part))
            # The prefill makes the first token of each.
            steps = sum(max(tokens - 1, 0) for tokens, _ in answers)
            read = check_sparsity(arm, before, client.counters(), steps)
            results.append(
                [
                    {**arm._asdict(), **question.row, **answer, "read": read}
                    for question, (_, answer) in zip(part, answers, strict=True)
                ]
            )
            on_rows(len(part))
