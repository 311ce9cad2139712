"""InfiniteBench's scores (Zhang et al., arXiv 2402.13718), after its compute_scores.py.

The references of a sample are what the benchmark calls its label, each as text; for questions
with options they are the right option and its letter, in this order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from hata_sglang.evaluation import text_scores
from hata_sglang.evaluation.text_scores import optional_package, plain_chinese, token_f1

NUMBER = re.compile(r"\d+\.\d+|\d+")
LETTERS = "ABCD"


def _spaced(text: str, signs: Sequence[str]) -> str:
    for sign in signs:
        text = text.replace(sign, " ")
    return re.sub(" {2,}", " ", text)


def first_integer(
    prediction: str, references: Sequence[str], all_classes: Sequence[str] = ()
) -> float:
    """1 if the first run of digits is the reference, digit by digit (pass keys, numbers)."""
    match = re.search(r"[0-9]+", prediction)
    return float(match is not None and match[0] == references[0])


def first_number(
    prediction: str, references: Sequence[str], all_classes: Sequence[str] = ()
) -> float:
    """1 if the first number has the reference's value, whole or decimal (math_find)."""
    match = NUMBER.search(prediction)
    return float(match is not None and float(match[0]) == float(references[0]))


def key_value(prediction: str, references: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """1 if the value stands in the answer as a word of its own (kv_retrieval)."""
    return float(references[0] in _spaced(prediction, "\n:\"'.,?!{}").split())


def last_integer(
    prediction: str, references: Sequence[str], all_classes: Sequence[str] = ()
) -> float:
    """1 if the last word is the number that the function returns (code_run)."""
    words = _spaced(prediction, "\n.`'\":").split()
    if not words or re.fullmatch(r"[+-]?\d+", words[-1]) is None:
        return 0.0
    return float(int(words[-1]) == int(references[0]))


def _after(text: str, lead_ins: Sequence[str]) -> str | None:
    """What follows the first of `lead_ins`, in their order, that stands in `text`."""
    for lead_in in lead_ins:
        place = text.find(lead_in)
        if place >= 0:
            return text[place + len(lead_in) + 1 :]
    return None


def code_option(
    prediction: str, references: Sequence[str], all_classes: Sequence[str] = ()
) -> float:
    """1 if the answer is the right letter with a sign behind it, or states letter or function."""
    text = prediction.strip()
    name, letter = references
    if text[:2] in (f"{letter}.", f"{letter}:"):
        return 1.0
    text = _spaced(text, ["\n", "`", "'", '"', "-", "*", "Option", "option"])
    stated = _after(text, ["answer is:", "is:", "answer:", "correct option is:"])
    return float(stated is not None and stated.startswith((letter, name)))


def book_option(
    prediction: str, references: Sequence[str], all_classes: Sequence[str] = ()
) -> float:
    """1 if the answer begins with the right letter, states the option, or first names it."""
    text = prediction.strip()
    if not text:
        return 0.0
    if text[0] in LETTERS:
        return float(text[0] in references)
    if text in references:
        return 1.0
    text = _spaced(text, "\n\"'.,?!{}")
    stated = _after(text, ["answer is:", "answer:", "answer is", "option is"])
    if stated is not None:
        return float(stated.startswith(tuple(references)))
    for word in text.split():
        if word in LETTERS:
            return float(word in references)
    return 0.0


def speaker(prediction: str, references: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """1 if the answer has the name as a word, whatever the case (longdialogue_qa_eng)."""
    return float(references[0] in _spaced(prediction, "\n:\"'.,?!{}").upper().split())


def running_values(
    prediction: str, references: Sequence[str], all_classes: Sequence[str] = ()
) -> float:
    """Share of the values that are right before the first wrong one (math_calc)."""
    found = [int(digits) for digits in re.findall(r"[0-9]+", prediction)]
    right = 0
    for value, reference in zip(found, references, strict=False):
        if value != int(reference):
            break
        right += 1
    return right / len(references)


def _chinese_signs_f1(prediction: str, reference: str) -> float:
    return token_f1(list(plain_chinese(prediction)), list(plain_chinese(reference)))


def _rouge_l_sum(prediction: str, reference: str) -> float:
    scorer = optional_package("rouge_score.rouge_scorer").RougeScorer(["rougeLsum"])
    return scorer.score(reference, prediction)["rougeLsum"].fmeasure


INFINITEBENCH: dict[str, Callable[[str, Sequence[str], Sequence[str]], float]] = {
    "first_integer": first_integer,
    "first_number": first_number,
    "key_value": key_value,
    "last_integer": last_integer,
    "code_option": code_option,
    "book_option": book_option,
    "speaker": speaker,
    "running_values": running_values,
    "qa_f1_zh_signs": text_scores.best(_chinese_signs_f1),
    "rouge_l_sum": text_scores.best(_rouge_l_sum),
}
