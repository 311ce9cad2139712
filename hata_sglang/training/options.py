"""What training is asked to do, besides the recipe of the method."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hata_sglang.training.attention_mass import TopK
from hata_sglang.training.capture import Sampling


@dataclass(frozen=True)
class TrainOptions:
    """Options of `train` that every method has.

    Parameters
    ----------
    bits : int or None
        Per token and KV head, a multiple of 32. None stands for 128, or for the
        number that the method fixes.
    seed : int
    sequence_length, minimum_length : int
        Tokens of a training sequence, at most and at least.
    own_tokens : int
        Of each kind of the package's own texts, where no others are given.
    sampling : Sampling
        Which queries are captured.
    budgets : tuple of TopK
        For the attention mass; the first is the one that the kept step is best at.
    evaluate_every : int
        Steps between two looks at the mass on the validation texts.
    patience : int
        Looks without a better mass after which a layer stops.
    measured_queries : int
        Per validation and held-out sequence.
    device : str
        ``cpu`` or ``cuda``.
    dtype : {"float32", "float16"}
        Of the weights' file. Masses are measured with the weights as stored.
    max_disk_gb : float or None
        Bound of the captures on disk, in GB (10**9 bytes). None: no bound.
    description : str
        Of the training texts, for the card.
    sglang_arguments : tuple of str
        More of the server arguments that SGLang loads the model with.
    """

    bits: int | None = None
    seed: int = 0
    sequence_length: int = 6144
    minimum_length: int = 2048
    own_tokens: int = 98_304
    sampling: Sampling = field(default_factory=Sampling)
    budgets: tuple[TopK, ...] = (TopK(256, 16, 64), TopK(96, 16, 16))
    evaluate_every: int = 100
    patience: int = 3
    measured_queries: int = 48
    device: str = "cpu"
    dtype: Literal["float32", "float16"] = "float32"
    max_disk_gb: float | None = None
    description: str = "not described"
    sglang_arguments: tuple[str, ...] = ()

    def deciding(self) -> dict[str, object]:
        """What decides a layer's weights, given its captures."""
        return {
            "seed": self.seed,
            "budgets": [vars(budget) for budget in self.budgets],
            "evaluate_every": self.evaluate_every,
            "patience": self.patience,
            "measured_queries": self.measured_queries,
            "device": self.device,
            "dtype": self.dtype,
        }
