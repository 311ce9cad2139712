"""Asking a server in batches: no row is written before its counters have said what they decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hata_sglang.evaluation.client import Client
from hata_sglang.evaluation.results import ResultFile
from hata_sglang.evaluation.sparsity import Arm, check_sparsity

#: Asks one question: the tokens that were decoded for it, and columns of its row.
Ask = Callable[[], tuple[int, dict[str, Any]]]


def grade(
    client: Client,
    arm: Arm,
    questions: Sequence[tuple[dict[str, Any], Ask]],
    results: ResultFile,
    what: str,
    *,
    concurrency: int = 1,
    batch: int = 1,
    on_rows: Callable[[int], None] | None = None,
) -> int:
    """Ask what is not in `results` yet, and append its rows.

    Parameters
    ----------
    client : Client
        Of a server that serves nobody else.
    arm : Arm
        What it runs.
    questions : sequence of (dict, callable)
        What is known of a row before it is asked, its keys among it, and how to ask.
    results : ResultFile
        Its rows get the column ``read``, too.
    what : str
        Named in errors.
    concurrency : int, default 1
        Requests at the same time.
    batch : int, default 1
        Questions between two looks at the counters, over `concurrency`.
    on_rows : callable, optional
        Called with the number of rows after every batch, and of those that were there already.

    Returns
    -------
    int
        Questions asked.

    Raises
    ------
    HataError
        If a sparse arm was not sparse, or a dense one has hata's counters.
    """
    todo = [(row, ask) for row, ask in questions if not results.has(row)]
    done = on_rows or (lambda _: None)
    done(len(questions) - len(todo))
    size = batch * concurrency
    with ThreadPoolExecutor(concurrency) as pool:
        for start in range(0, len(todo), size):
            part = todo[start : start + size]
            before = client.counters()
            answers = list(pool.map(lambda question: question[1](), part))
            # The prefill makes the first token of each.
            steps = sum(max(tokens - 1, 0) for tokens, _ in answers)
            read = check_sparsity(arm, before, client.counters(), steps, what)
            pairs = zip(part, answers, strict=True)
            results.append([{**row, **own, "read": read} for (row, _), (_, own) in pairs])
            done(len(part))
    return len(todo)
