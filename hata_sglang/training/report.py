"""What a training run says about itself: the card, and what it cost."""

from __future__ import annotations

import platform
import resource
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from hata_sglang import __version__
from hata_sglang.files import file_sha256
from hata_sglang.training.attention_mass import TopK
from hata_sglang.training.splits import SplitFiles, Splits
from hata_sglang.training.texts import sources
from hata_sglang.training.train_layer import LayerResult
from hata_sglang.weights import HeldOut, TrainingData


class Cost:
    """Wall time and peak memory of a run; the clock starts when it is made.

    Parameters
    ----------
    device : str
        ``cpu`` or ``cuda``.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.start = time.perf_counter()
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def entries(self, results: Sequence[LayerResult], reused: int) -> dict[str, str]:
        """What the card records.

        Parameters
        ----------
        results : sequence of LayerResult
        reused : int
            Layers among them that an earlier run had finished.
        """
        # The kernel counts in KiB; the peak is that of the whole process, libraries included.
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        entries = {
            "device": torch.cuda.get_device_name() if self.device == "cuda" else "cpu",
            "threads": str(torch.get_num_threads()),
            "wall_seconds": f"{time.perf_counter() - self.start:.2f}",
            "layer_seconds": f"{sum(result.seconds for result in results):.2f}",
            "layers_from_earlier_run": str(reused),
            "peak_host_memory_gb": f"{host / 1e9:.2f}",
        }
        if self.device == "cuda":
            entries["peak_gpu_memory_gb"] = f"{torch.cuda.max_memory_allocated() / 1e9:.2f}"
        return entries


def describe_cost(created_by: Mapping[str, str]) -> str:
    """One line for people, from a card's ``created_by``."""
    line = f"{created_by['wall_seconds']} s on {created_by['device']}"
    if created_by["layers_from_earlier_run"] != "0":
        line += f" ({created_by['layers_from_earlier_run']} layers were finished before)"
    line += f", peak host memory {created_by['peak_host_memory_gb']} GB"
    if "peak_gpu_memory_gb" in created_by:
        line += f", peak GPU memory {created_by['peak_gpu_memory_gb']} GB"
    return line


def training_data(splits: Splits, files: SplitFiles, description: str) -> TrainingData:
    """What the weights were trained, chosen and measured on, for the card.

    Parameters
    ----------
    splits : dict of str to list of TokenSequence
    files : SplitFiles
    description : str
        Of the training texts; of the package's own, their sources stand behind it.
    """
    if not files.train:
        named = "; ".join(f"{name} ({licence})" for name, licence in sources("train").items())
        description = f"{description}: texts of hata-sglang {__version__}: {named}"
    lengths = {split: [len(sequence) for sequence in own] for split, own in splits.items()}
    return measured_data(description, lengths, files)


def measured_data(
    description: str, lengths: Mapping[str, Sequence[int]], files: SplitFiles | None = None
) -> TrainingData:
    """As `training_data`, of the tokens of each sequence by split.

    Parameters
    ----------
    description : str
    lengths : mapping of str to sequence of int
    files : SplitFiles, optional
        None: there are none.
    """
    fields = {"description": description, "step_chosen_on": "validation", "files": {}}
    for prefix, split in (("", "train"), ("validation_", "validation"), ("held_out_", "held_out")):
        fields |= {
            f"{prefix}sequences": len(lengths[split]),
            f"{prefix}tokens": sum(lengths[split]),
        }
        if files is not None:
            fields[f"{prefix}files"] = _sums(getattr(files, split))
    return TrainingData(**fields)


def _sums(files: Sequence[str | Path]) -> dict[str, str]:
    return {Path(file).name: file_sha256(Path(file)) for file in files}


def held_out_measures(
    budgets: Sequence[TopK], results: Mapping[int, LayerResult]
) -> tuple[HeldOut, ...]:
    """Attention mass kept, and error of the output, at every budget, for the card."""
    found = []
    for place, budget in enumerate(budgets):
        masses = {layer: result.masses[place] for layer, result in results.items()}
        errors = {layer: result.output_errors[place] for layer, result in results.items()}
        found.append(
            HeldOut(
                budget=budget.k,
                sink=budget.sink,
                recent=budget.recent,
                mean=_means(masses),
                per_layer=_by_selector(masses),
                output_error=_means(errors),
                output_error_per_layer=_by_selector(errors),
            )
        )
    return tuple(found)


def _by_selector(by_layer: Mapping[int, dict[str, float]]) -> dict[str, dict[int, float]]:
    names = next(iter(by_layer.values()))
    return {name: {layer: round(own[name], 4) for layer, own in by_layer.items()} for name in names}


def _means(by_layer: Mapping[int, dict[str, float]]) -> dict[str, float]:
    names = next(iter(by_layer.values()))
    count = len(by_layer)
    return {name: round(sum(own[name] for own in by_layer.values()) / count, 4) for name in names}


def versions() -> dict[str, str]:
    """Versions of what makes the weights."""
    import transformers

    return {
        "hata_sglang": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
