"""Collect what training took, and what it gave, from the cards of sets of weights.

    python benchmarks/training_costs.py WEIGHTS... --out training_costs.csv

WEIGHTS are shipped names, or folders that `hata-sglang train` made; their cards are read, and the
CSV gets a row for each.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hata_sglang.evaluation.provenance import write_csv
from hata_sglang.weights import Card, read_card

COSTS = ("device", "threads", "wall_seconds", "layer_seconds", "layers_from_earlier_run")
MEMORY = ("peak_host_memory_gb", "peak_gpu_memory_gb")
VERSIONS = ("torch", "transformers", "python", "hata_sglang")


def row_of(card: Card) -> dict:
    """One row: what was trained, how long it took, what it keeps of held-out attention."""
    made = card.created_by
    masses = {}
    for held_out in card.held_out:
        masses[f"mass_k{held_out.budget}"] = held_out.mean[card.method]
        masses[f"exact_mass_k{held_out.budget}"] = held_out.mean["exact"]
    return {
        "set": f"{card.method}-{card.bits}b",
        "model": card.model,
        "train_tokens": card.training_data.tokens,
        "steps_taken": card.recipe["steps_taken"],
        **{f"trained_on_{key}" if key == "device" else key: made[key] for key in COSTS},
        **{key: made.get(key, "") for key in MEMORY},
        **masses,
        "texts_sha256": " ".join(card.training_data.files.values())[:12],
        **{f"trained_with_{key}": made[key] for key in VERSIONS},
    }


def main() -> None:
    """Read the cards and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", nargs="+", metavar="WEIGHTS")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = [row_of(read_card(weights)) for weights in args.weights]
    write_csv(args.out, rows)
    for row in rows:
        print(f"{row['set']:20} {row['wall_seconds']:>8} s on {row['trained_on_device']}")


if __name__ == "__main__":
    main()
