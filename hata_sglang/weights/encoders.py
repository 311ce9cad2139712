"""From the plan of every layer to its encoder: weights are read, compared with the YAML and model.

`hata-sglang config check` and the server share this, so that what the one accepts the other runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from hata_kernels.encoders import Encoder
from hata_sglang.config.layer_ranges import format_layers
from hata_sglang.config.plan import LayerPlan
from hata_sglang.errors import Problem, Refusal, refuse_any
from hata_sglang.methods import methods
from hata_sglang.shape import AttentionShape
from hata_sglang.weights import HashWeights, check_against_model, load_weights
from hata_sglang.weights.auto import ServedModel, with_sets


@dataclass(frozen=True)
class LoadedEncoders:
    """What `load_encoders` found.

    Attributes
    ----------
    plans : tuple of LayerPlan
        Those given, with bits and scale bits as the weights have them, and `left_out` decided.
    encoders : dict of int to hata_kernels.encoders.Encoder
        Of every sparse layer whose method keeps codes; float32, on the CPU.
    sets : dict of str to HashWeights
        By the name or path that the configuration gave.
    left_out : dict of int to torch.Tensor
        Of every layer whose plan has the mean of the values left out: ``[Hq, RATIOS]``
        (`HashWeights`).
    """

    plans: tuple[LayerPlan, ...]
    encoders: dict[int, Encoder]
    sets: dict[str, HashWeights]
    left_out: dict[int, torch.Tensor]


def load_encoders(
    plans: Sequence[LayerPlan],
    model: AttentionShape,
    served: ServedModel,
) -> LoadedEncoders:
    """Load every set of hash weights that the plans name; make the encoder of every coded layer.

    Parameters
    ----------
    plans : sequence of LayerPlan
        Of all layers.
    model : AttentionShape
        Heads of the model to be served.
    served : ServedModel
        The same model; only ``weights: auto`` looks at more than its config.

    Returns
    -------
    LoadedEncoders

    Raises
    ------
    Refusal
        With every set that is missing, was made for another model or trained for another method,
        and the layers that a set lacks, whose bits the YAML gives differently, or that are to have
        a mean of the values left out which the set does not weigh.
    """
    plans = with_sets(plans, model.group, served)
    sets: dict[str, HashWeights] = {}
    encoders: dict[int, Encoder] = {}
    problems: list[Problem] = []
    for ref in dict.fromkeys(plan.weights for plan in plans if plan.weights is not None):
        users = [plan for plan in plans if plan.weights == ref]
        try:
            sets[ref] = load_weights(ref)
            # Made for another model, every layer is wrong; saying so once is enough.
            found = check_against_model(sets[ref], served.hf_config)
            found = found or _plan_problems(users, sets[ref])
            problems += found
            if not found:
                encoders |= {plan.layer: sets[ref].encoder(plan.layer) for plan in users}
        except Refusal as refusal:
            problems += refusal.problems
    refuse_any(problems)
    for plan in plans:
        if plan.ranks == "codes" and plan.weights is None:
            encoders[plan.layer] = methods()[plan.method].untrained_encoder(
                plan.bits, seed=plan.seed, layer=plan.layer, **model.sizes
            )
    settled = tuple(_settled(plan, encoders.get(plan.layer), sets) for plan in plans)
    left_out = {
        plan.layer: sets[plan.weights].left_out[plan.layer]
        for plan in settled
        if plan.left_out == "mean"
    }
    return LoadedEncoders(settled, encoders, sets, left_out)


def _plan_problems(users: Iterable[LayerPlan], weights: HashWeights) -> list[Problem]:
    """Why a set of weights is not what the plans that name it say; layers are grouped."""
    card = weights.card
    wrong: dict[tuple[str, str, str], list[int]] = {}
    for plan in users:
        if plan.layer not in weights.layers:
            found = ("weights", f"trained weights for them in {card.name}", "none")
        elif plan.method != card.method:
            found = ("method", f"{card.method} (that of weights {card.name})", str(plan.method))
        elif plan.bits not in (None, card.bits):
            found = ("bits", f"{card.bits} (those of weights {card.name})", str(plan.bits))
        elif plan.left_out == "mean" and not weights.left_out:
            expected = f"auto or none, as {card.name} does not weigh the mean (train it anew)"
            found = ("left_out", expected, "mean")
        else:
            continue
        wrong.setdefault(found, []).append(plan.layer)
    return [
        Problem(f"{setting} of layers {format_layers(layers)}", expected, found)
        for (setting, expected, found), layers in wrong.items()
    ]


def _settled(
    plan: LayerPlan, encoder: Encoder | None, sets: Mapping[str, HashWeights]
) -> LayerPlan:
    if encoder is None:
        return plan
    left_out = plan.left_out
    if left_out == "auto":
        left_out = "mean" if sets[plan.weights].left_out else "none"
    sizes = {"bits": encoder.bits, "scale_bits": encoder.scale_bits}
    return replace(plan, left_out=left_out, **sizes)
