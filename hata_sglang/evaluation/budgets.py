"""Numbers of a command line: budgets, as the YAML and the tables have them, and counts."""

from __future__ import annotations

from argparse import ArgumentTypeError
from typing import Any

from hata_sglang.config.budget import Budget

#: Upper bound of a budget that is a share of the context: none that a model reaches.
NO_LIMIT = 10**9


def read_budget(text: str) -> int | float:
    """Read one budget of a command line: tokens (``256``) or a share of the context (``0.0156``).

    Raises
    ------
    argparse.ArgumentTypeError
        If it is neither.
    """
    try:
        value = float(text) if "." in text else int(text)
    except ValueError:
        value = 0
    if value <= 0 or (isinstance(value, float) and value > 1):
        raise ArgumentTypeError(f"expected tokens (256) or a share (0.0156), found {text!r}")
    return value


def yaml_budget(value: int | float, kept: int) -> int | dict[str, Any]:
    """What the YAML says for a budget of the command line.

    A share has at least one token to choose beside the `kept` ones, ``sink + recent``: so many
    tokens may be a larger share of a short context.
    """
    if isinstance(value, float):
        return {"ratio": value, "min": kept + 1, "max": NO_LIMIT}
    return value


def budget_name(budget: Budget) -> str:
    """A budget as the tables name it: a share or a number of tokens."""
    return str(budget.min) if budget.ratio is None else f"{budget.ratio:g}"


def read_count(text: str) -> int:
    """Read a whole number above 0.

    Raises
    ------
    argparse.ArgumentTypeError
        If it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"expected a whole number above 0, found {text!r}")
    return int(text)
