"""Refusal: every problem in one message, and across processes."""

import pickle

import pytest

from hata_sglang.errors import HataError, Problem, Refusal

PROBLEMS = [Problem("bits", "a multiple of 32", "100"), Problem("sink", "at least 0", "-1")]


def test_message_lists_every_problem():
    assert str(Refusal(PROBLEMS)) == (
        "hata cannot run: 2 problems\n"
        "  - bits: expected a multiple of 32, found 100\n"
        "  - sink: expected at least 0, found -1"
    )


def test_one_problem_is_singular():
    assert str(Refusal(PROBLEMS[:1])).startswith("hata cannot run: 1 problem\n")


def test_is_a_hata_error_with_its_problems():
    refusal = Refusal(iter(PROBLEMS))
    assert isinstance(refusal, HataError)
    assert refusal.problems == tuple(PROBLEMS)


def test_needs_a_problem():
    with pytest.raises(ValueError, match="at least one"):
        Refusal([])


def test_survives_pickling():
    copy = pickle.loads(pickle.dumps(Refusal(PROBLEMS)))
    assert copy.problems == tuple(PROBLEMS)
    assert str(copy) == str(Refusal(PROBLEMS))
