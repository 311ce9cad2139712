"""Running the model over texts and judging every selector in every layer."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from hata_sglang.config.budget import Budget
from hata_sglang.evaluation.budgets import yaml_budget
from hata_sglang.evaluation.offline_rows import Result
from hata_sglang.evaluation.selection_quality import Judge
from hata_sglang.evaluation.selector_list import loki_channels, make_selectors
from hata_sglang.evaluation.selectors import AttentionCase, KeyStatistics, Selector
from hata_sglang.progress import bars
from hata_sglang.seams.model_process import ModelProcess
from hata_sglang.training.capture import Capture, CaptureStore, Sampling, capture_jobs
from hata_sglang.training.checkpoint import load_tokenizer
from hata_sglang.training.data import DataError, TokenSequence, read_sequences
from hata_sglang.weights import Fingerprint, HashWeights


@dataclass(frozen=True)
class Study:
    """What is measured.

    Attributes
    ----------
    layers : tuple of int
    selectors : tuple of str
        Names, see `selector_list`.
    sets : tuple of HashWeights
        Each a selector more.
    budgets : tuple of int or float
        Tokens, or shares of a query's context.
    sink, recent : int
    queries : int
        Of each sequence.
    untrained_bits : tuple of int
    seed : int
    """

    layers: tuple[int, ...]
    selectors: tuple[str, ...]
    sets: tuple[HashWeights, ...]
    budgets: tuple[int | float, ...]
    sink: int
    recent: int
    queries: int
    untrained_bits: tuple[int, ...]
    seed: int

    def tokens(self, budget: int | float, contexts: torch.Tensor) -> torch.Tensor:
        """Tokens that queries with contexts of these lengths may keep, as in serving: int ``[N]``.

        A share is rounded up, and leaves room for a token besides sink and recent ones.
        """
        value = yaml_budget(budget, self.sink + self.recent)
        return Budget.model_validate(value).tokens_tensor(contexts)


def read_texts(
    args: argparse.Namespace, vocab_size: int
) -> tuple[list[TokenSequence], list[TokenSequence]]:
    """Read the sequences to calibrate on (none without Loki) and those to measure on.

    Raises
    ------
    DataError
        If the texts cannot be used, or the same ones are in both.
    """
    minimum = args.length * 3 // 4 if args.minimum_length is None else args.minimum_length
    tokenizer = load_tokenizer(args.model)

    def read(files: Sequence[Path]) -> list[TokenSequence]:
        found = read_sequences(files, tokenizer, args.length, max(2, minimum), vocab_size)
        count = min(args.sequences, len(found))
        return [found[index * len(found) // count] for index in range(count)]

    sequences, calibration = read(args.data), []
    if loki_channels(args.selectors):
        if args.calibration:
            calibration = read(args.calibration)
        else:
            half = len(sequences) // 2
            calibration, sequences = sequences[:half], sequences[half:]
        shared = {each.tokens for each in calibration} & {each.tokens for each in sequences}
        if shared or not calibration:
            found = "the same text in both" if shared else "one sequence in all"
            raise DataError(
                "texts: expected some for Loki to learn from and others to measure on, found "
                f"{found}. Give more text, --calibration FILE, or --selectors without loki."
            )
    return calibration, sequences


def measure(
    args: argparse.Namespace,
    shape: Fingerprint,
    study: Study,
    calibration: Sequence[TokenSequence],
    sequences: Sequence[TokenSequence],
    console: Console,
) -> list[Result]:
    """Judge every selector, on one sequence after the other.

    Parameters
    ----------
    args : argparse.Namespace
        Its `model` is the checkpoint, its `device` runs it.
    shape : Fingerprint
        Of the model.
    study : Study
    calibration, sequences : sequence of TokenSequence
        From `read_texts`.
    console : Console
        Shows the progress.
    """
    results: list[Result] = []
    longest = max(len(sequence.tokens) for sequence in (*calibration, *sequences))
    device = torch.device(args.device)
    with (
        tempfile.TemporaryDirectory(prefix="hata-offline-") as folder,
        ModelProcess(args.model, args.device, longest) as model,
        bars(console) as progress,
    ):
        look = partial(_look, model, CaptureStore(Path(folder)), study, progress)
        statistics = KeyStatistics()
        for capture, layer in look(calibration, "calibrate (layers)"):
            statistics.add(layer, capture.k.to(device))
        selectors = make_selectors(
            study.selectors,
            study.sets,
            shape,
            study.layers,
            untrained_bits=study.untrained_bits,
            seed=study.seed,
            statistics=statistics,
            device=device,
        )
        for capture, layer in look(sequences, "measure (layers)"):
            tensors = (capture.q, capture.k, capture.v, capture.positions)
            case = AttentionCase(layer, *(x.to(device) for x in tensors), capture.scale)
            results.extend(_judge(case, study, selectors))
    return results


def _look(
    model: ModelProcess,
    store: CaptureStore,
    study: Study,
    progress: Progress,
    sequences: Sequence[TokenSequence],
    title: str,
) -> Iterator[tuple[Capture, int]]:
    """Captures of every sequence and layer, with the layer; a sequence at a time is on disk."""
    sampling = Sampling(study.queries, study.queries // 2)
    task = progress.add_task(title, total=len(sequences) * len(study.layers))
    jobs = capture_jobs(sequences, store, sampling, study.seed, values=True)
    for done in model.run(jobs, study.layers):
        for layer in study.layers:
            yield store.read(layer, done - 1), layer
            store.path(layer, done - 1).unlink()
            progress.advance(task)


def _judge(case: AttentionCase, study: Study, selectors: Sequence[Selector]) -> Iterator[Result]:
    tokens = [study.tokens(budget, case.positions + 1) for budget in study.budgets]
    judge = Judge(case, study.sink, study.recent, tokens)
    for selector in selectors:
        left_out = None if selector.left_out is None else selector.left_out[case.layer]
        qualities = judge.judge(selector.scores(case), left_out)
        for budget, kept, quality in zip(study.budgets, tokens, qualities, strict=True):
            mean = float(kept.float().mean())
            yield Result(case.layer, selector, budget, mean, len(case.q), quality.cpu())
