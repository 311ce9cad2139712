"""Refusal: every problem in one message, and across processes."""

import itertools
import pickle

import pytest

from hata_sglang.errors import (
    MAX_PROBLEMS,
    MAX_TEXT,
    HataError,
    Problem,
    Refusal,
    printable,
    refuse_any,
)

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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, Ünïcode and 漢字", "plain, Ünïcode and 漢字"),
        ("\x1b[31m red", "\\x1b[31m red"),
        ("a\nhata cannot run: 0 problems", "a\\nhata cannot run: 0 problems"),
        ("\u202eright to left\u2066", "\\u202eright to left\\u2066"),
        ("\ud800\u2028\x85\x7f", "\\ud800\\u2028\\x85\\x7f"),
    ],
)
def test_what_a_terminal_would_act_on_is_escaped(text, shown):
    problem = Problem(text, text, text)
    assert (problem.setting, problem.expected, problem.found) == (shown, shown, shown)
    assert str(problem).isprintable()
    assert printable(shown) == shown


def test_long_texts_are_cut():
    assert len(printable("\x1b" * 10_000)) == MAX_TEXT
    assert printable("x" * 11, 10) == "x" * 7 + "..."
    assert printable("x" * 10, 10) == "x" * 10


def test_a_refusal_lists_the_first_hundred_and_makes_no_more():
    made = []

    def problems():
        for number in itertools.count():
            made.append(number)
            yield Problem(f"setting {number}", "one", "another")

    refusal = Refusal(problems())
    assert len(refusal.problems) == MAX_PROBLEMS == len(made) - 1
    assert str(refusal).startswith("hata cannot run: more than 100 problems\n  - setting 0: ")
    assert str(pickle.loads(pickle.dumps(refusal))) == str(refusal)
    assert str(Refusal(refusal.problems)).startswith("hata cannot run: 100 problems\n")


def test_no_problems_are_no_refusal():
    refuse_any(iter(()))
    with pytest.raises(Refusal, match="2 problems"):
        refuse_any(iter(PROBLEMS))
