"""Scores of an answer against its references, from 0 to 1, by name.

Every metric has the signature ``metric(prediction, references, all_classes) -> float``. Those of
a benchmark follow its published evaluation; `hata_sglang.evaluation.metrics_infinitebench` has
the ones of InfiniteBench, and `METRICS` here is the table of all.

Packages that only some metrics need are the extra ``eval``: rouge (ROUGE-L as LongBench computes
it), rouge-score (ROUGE-Lsum, InfiniteBench), jieba (Chinese words) and rapidfuzz (the successor of
fuzzywuzzy, whose ratio LongBench takes for code).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hata_sglang.evaluation.metrics_infinitebench import INFINITEBENCH
from hata_sglang.evaluation.text_scores import (
    Metric,
    Single,
    best,
    optional_package,
    plain_chinese,
    token_f1,
    words,
)


def string_match_all(
    prediction: str, references: Sequence[str], all_classes: Sequence[str] = ()
) -> float:
    """Share of the references that stand in the prediction, whatever the case (RULER)."""
    text = prediction.lower()
    return sum(reference.lower() in text for reference in references) / len(references)


def string_match_part(
    prediction: str, references: Sequence[str], all_classes: Sequence[str] = ()
) -> float:
    """1 if any reference stands in the prediction, whatever the case (RULER's questions)."""
    text = prediction.lower()
    return float(any(reference.lower() in text for reference in references))


def _qa_f1(prediction: str, reference: str) -> float:
    return token_f1(words(prediction), words(reference))


def _chinese_words(text: str) -> list[str]:
    return list(optional_package("jieba").cut(text, cut_all=False))


def _qa_f1_zh(prediction: str, reference: str) -> float:
    def tokens(text: str) -> list[str]:
        return [token for token in map(plain_chinese, _chinese_words(text)) if token]

    return token_f1(tokens(prediction), tokens(reference))


@contextmanager
def _recursion(depth: int) -> Iterator[None]:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, depth))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def _rouge_l(prediction: str, reference: str) -> float:
    scorer = optional_package("rouge").Rouge()
    # The package refuses texts of full stops alone; nothing said scores nothing.
    if not prediction.replace(".", " ").split() or not reference.replace(".", " ").split():
        return 0.0
    # It walks back through the two texts by recursion, a word a level. LongBench's evaluation
    # takes any error here for a score of 0, and so gives 0 to good summaries that are long.
    with _recursion(1000 + len(prediction.split()) + len(reference.split())):
        (scores,) = scorer.get_scores([prediction], [reference])
    return scores["rouge-l"]["f"]


def _rouge_l_zh(prediction: str, reference: str) -> float:
    return _rouge_l(" ".join(_chinese_words(prediction)), " ".join(_chinese_words(reference)))


def _count(prediction: str, reference: str) -> float:
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(reference) / len(numbers) if numbers else 0.0


def _paragraph(pattern: str) -> Single:
    def score(prediction: str, reference: str) -> float:
        match = re.search(pattern, reference)
        if match is None:
            raise ValueError(f"reference: expected a match of {pattern!r}, found {reference!r}")
        return _count(prediction, match[1])

    return score


def _code_similarity(prediction: str, reference: str) -> float:
    fuzz = optional_package("rapidfuzz.fuzz")
    lines = prediction.lstrip("\n").split("\n")
    # The first line that is neither a comment nor the fence of a code block.
    code = [line for line in lines if not any(sign in line for sign in ("`", "#", "//"))]
    if not code or not code[0] or not reference:  # rapidfuzz finds two empty lines alike
        return 0.0
    return round(fuzz.ratio(code[0], reference)) / 100  # fuzzywuzzy rounds to whole percents


def classification(
    prediction: str, references: Sequence[str], all_classes: Sequence[str] = ()
) -> float:
    """1 over the number of classes that the prediction names, if the right one is among them.

    A name that is part of the right one's (``DESC`` in ``DESC:manner``) does not count.
    """

    def score(reference: str) -> float:
        named = [name for name in all_classes if name in prediction]
        # Removed while walking over the list, which steps over the second of two such names in a
        # row: published scores are computed like this.
        for name in named:
            if name in reference and name != reference:
                named.remove(name)
        return 1 / len(named) if reference in named else 0.0

    return max(score(reference) for reference in references)


def first_line(metric: Metric) -> Metric:
    """Metric of the prediction's first line alone: the model goes on with examples of its own."""

    def score(prediction: str, references: Sequence[str], all_classes: Sequence[str] = ()) -> float:
        return metric(prediction.lstrip("\n").split("\n")[0], references, all_classes)

    return score


qa_f1 = best(_qa_f1)
qa_f1_zh = best(_qa_f1_zh)
rouge_l = best(_rouge_l)
rouge_l_zh = best(_rouge_l_zh)
count = best(_count)
retrieval = best(_paragraph(r"Paragraph (\d+)"))
retrieval_zh = best(_paragraph(r"段落(\d+)"))
code_similarity = best(_code_similarity)

#: Every metric by the name that `Sample.metric` gives.
METRICS: dict[str, Metric] = {
    **INFINITEBENCH,
    "string_match_all": string_match_all,
    "string_match_part": string_match_part,
    "qa_f1": qa_f1,
    "qa_f1_zh": qa_f1_zh,
    "qa_f1_first_line": first_line(qa_f1),
    "rouge_l": rouge_l,
    "rouge_l_zh": rouge_l_zh,
    "rouge_l_first_line": first_line(rouge_l),
    "classification_first_line": first_line(classification),
    "count": count,
    "retrieval": retrieval,
    "retrieval_zh": retrieval_zh,
    "code_similarity": code_similarity,
}
