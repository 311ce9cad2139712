"""Hash weights on disk: sets and their cards, and the encoders that they make."""

from hata_sglang.weights.card import LEFT_OUT, Card, Fingerprint, HeldOut, TrainingData
from hata_sglang.weights.store import (
    HashWeights,
    check_against_model,
    load_weights,
    read_card,
    save_weights,
    shipped_weights,
)

__all__ = [
    "LEFT_OUT",
    "Card",
    "Fingerprint",
    "HashWeights",
    "HeldOut",
    "TrainingData",
    "check_against_model",
    "load_weights",
    "read_card",
    "save_weights",
    "shipped_weights",
]
