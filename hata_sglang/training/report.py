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
from hata_sglang.training.data import total_tokens
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
    fields = {"description": description, "step_chosen_on": "validation"}
    for prefix, split in (("", "train"), ("validation_", "validation"), ("held_out_", "held_out")):
        fields |= {
            f"{prefix}files": _sums(getattr(files, split)),
            f"{prefix}sequences": len(splits[split]),
            f"{prefix}tokens": total_tokens(splits[split]),
        }
    return TrainingData(**fields)


def _sums(files: Sequence[str | Path]) -> dict[str, str]:
    return {Path(file).name: file_sha256(Path(file)) for file in files}


def held_out_masses(
    budgets: Sequence[TopK], results: Mapping[int, LayerResult]
) -> tuple[HeldOut, ...]:
    """Held-out attention mass at every budget, for the card."""
    found = []
    for place, budget in enumerate(budgets):
        masses = {layer: result.masses[place] for layer, result in results.items()}
        names = next(iter(masses.values()))
        per_layer = {n: {layer: round(m[n], 4) for layer, m in masses.items()} for n in names}
        mean = {n: round(sum(m[n] for m in masses.values()) / len(masses), 4) for n in names}
        found.append(
            HeldOut(
                budget=budget.k,
                sink=budget.sink,
                recent=budget.recent,
                mean=mean,
                per_layer=per_layer,
            )
        )
    return tuple(found)


def versions() -> dict[str, str]:
    """Versions of what makes the weights."""
    import transformers

    return {
        "hata_sglang": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
