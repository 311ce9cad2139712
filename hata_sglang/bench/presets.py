"""Which scenarios ``hata-sglang bench op`` times: presets, lists of the user, their order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from hata_sglang.bench.shapes import SHAPES, Scenario, Shape, grid, headline, scaling
from hata_sglang.errors import Problem, Refusal, refuse_any

METHODS = ("asymmetric", "hata")
#: First and last tokens that are always kept; a budget has room for more.
FORCED = 16 + 64


@dataclass(frozen=True)
class Axes:
    """Lists of which every combination is timed.

    Attributes
    ----------
    shapes : tuple of Shape
    batches, contexts : tuple of int
        Requests, and tokens of each.
    budgets : tuple of float
        Tokens per KV head; below 1 a share of the context.
    bits : tuple of int
    shared : tuple of int
        First tokens that all contexts share.
    methods : tuple of str
    """

    shapes: tuple[Shape, ...]
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    budgets: tuple[float, ...]
    bits: tuple[int, ...] = (128,)
    shared: tuple[int, ...] = (0,)
    methods: tuple[str, ...] = METHODS


#: Presets without lists.
FIXED = {"headline": headline, "scaling": scaling}
PRESETS = {
    "grid": Axes(
        shapes=tuple(SHAPES.values()),
        batches=(1, 2, 4, 8, 16, 32, 64),
        contexts=tuple(kilo * 1024 for kilo in (8, 16, 32, 64, 128, 256, 512)),
        budgets=(1 / 64, 512, 1024, 2048, 4096),
        bits=(64, 128, 256),
    ),
    "quick": Axes(
        shapes=(SHAPES["Llama-3.1-8B"],),
        batches=(1, 8),
        contexts=(32 * 1024, 128 * 1024),
        budgets=(512, 2048),
    ),
}


def in_order(scenarios: Iterable[Scenario]) -> list[Scenario]:
    """Each once; those of the same buffers beside each other, small ones first."""
    shapes = list(SHAPES)

    def key(scenario: Scenario):
        place = shapes.index(scenario.shape.name)
        size = (scenario.context, scenario.shared, scenario.batch)
        return place, *size, scenario.method, scenario.bits, scenario.k

    return sorted(dict.fromkeys(scenarios), key=key)


def make_scenarios(preset: str | None, **lists: Sequence) -> list[Scenario]:
    """Scenarios of a preset, some of whose lists may be replaced.

    Parameters
    ----------
    preset : str or None
        A key of `FIXED` or `PRESETS`. None: ``headline`` without lists, else ``quick``.
    **lists
        Attributes of `Axes`; those that are None or empty are the preset's.

    Returns
    -------
    list of Scenario
        In the order of `in_order`. A budget or a shared prefix that is longer than a context is
        left out for it.

    Raises
    ------
    Refusal
        If lists are given for one of `FIXED`, bits are not a multiple of 32, a budget has no room
        beside the first and last tokens, or nothing is left.
    """
    given = {name: tuple(values) for name, values in lists.items() if values}
    preset = preset or ("quick" if given else "headline")
    if preset in FIXED:
        if given:
            flags = ", ".join(f"--{name}" for name in given)
            raise Refusal.of("--preset", "grid or quick, with lists", f"{preset}, {flags}")
        return in_order(FIXED[preset]())
    axes = replace(PRESETS[preset], **given)
    problems = [Problem("--bits", "multiples of 32", str(bits)) for bits in axes.bits if bits % 32]
    refuse_any(problems)
    every = [
        scenario
        for scenario in grid(**vars(axes))
        if scenario.k <= scenario.context and scenario.shared < scenario.context
    ]
    low = sorted({scenario.k for scenario in every if scenario.k <= FORCED})
    if low:
        expected = f"more than {FORCED} tokens, those that are always kept"
        raise Refusal.of("--budgets", expected, ", ".join(map(str, low)))
    if not every:
        budgets = ", ".join(f"{budget:g}" for budget in axes.budgets)
        raise Refusal.of("--budgets", "one that is not longer than every context", budgets)
    return in_order(every)
