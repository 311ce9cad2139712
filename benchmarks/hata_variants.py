"""What HATA's paper leaves open, or its published code does otherwise, trained and compared once.

    python benchmarks/hata_variants.py --texts WORK --out hata_variants.csv

WORK is the folder that ``HATA_WORK=WORK bash launch/train_demo_weights.sh`` filled: its texts and
captures are used, so that all variants see what the shipped weights saw. Each variant is one run
of ``hata-sglang train`` on one CPU thread. The CSV gets the held-out attention mass from the cards,
a row per variant, layer and budget.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from hata_sglang.evaluation.provenance import write_csv
from hata_sglang.training.demo_corpus import DESCRIPTION
from hata_sglang.weights import Card, read_card

#: Variant: options of the recipe, on top of its defaults.
VARIANTS = {
    "default": {},
    "constant rate": {"schedule": "constant"},
    "key norms": {"scale_bits": 8},
    "paper": {"objective": "paper"},
    "paper, cosine": {"objective": "paper", "schedule": "cosine"},
    "paper, swapped loss weights": {"objective": "paper", "loss_weights": "code"},
    "published code": {"objective": "paper", "loss_weights": "code", "scale_bits": 8},
}


def train_variant(name: str, args: argparse.Namespace) -> Card:
    """Train one variant, if it is not there already; return its card."""
    folder = args.texts / "hata-variants" / name.replace(",", "").replace(" ", "-")
    if not (folder / "card.json").is_file():
        command = [sys.executable, "-m", "hata_sglang.cli", "train", "--model", args.model]
        command += ["--data", args.texts / "train.jsonl"]
        command += ["--validation", args.texts / "validation.jsonl"]
        command += ["--held-out", args.texts / "held_out.jsonl"]
        command += ["--work-dir", args.texts / "captures", "--method", "hata"]
        command += ["--bits", 128, "--seed", 0, "--dtype", "float16", "--threads", 1]
        command += ["--out", folder, "--description", DESCRIPTION]
        for option, value in VARIANTS[name].items():
            command += ["--option", f"{option}={value}"]
        subprocess.run(list(map(str, command)), check=True)
    return read_card(folder)


def rows_of(name: str, card: Card) -> list[dict]:
    """The held-out masses of one card, by layer and budget."""
    stored = card.bits + card.options["scale_bits"]
    columns = {"variant": name, "bits": card.bits, "bits_stored": stored}
    return [
        {
            **columns,
            "budget": held_out.budget,
            "layer": layer,
            "mass": mass,
            "exact_mass": held_out.per_layer["exact"][layer],
            "train_seconds": card.created_by["layer_seconds"],
        }
        for held_out in card.held_out
        for layer, mass in held_out.per_layer["hata"].items()
    ]


def main() -> None:
    """Train what is not trained yet, write the CSV and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="checkpoint of the demo model")
    parser.add_argument("--texts", type=Path, required=True, help="texts and captures")
    parser.add_argument("--out", type=Path, required=True, help="CSV to write")
    args = parser.parse_args()
    rows = []
    for name in VARIANTS:
        card = train_variant(name, args)
        rows += rows_of(name, card)
        means = (
            f"k = {held_out.budget}: {held_out.mean['hata']:.4f}" for held_out in card.held_out
        )
        print(f"{name:30} {', '.join(means)}")
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
