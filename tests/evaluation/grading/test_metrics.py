import pytest

from hata_sglang.evaluation.metrics import METRICS


@pytest.mark.parametrize(
    ("metric", "prediction", "references", "expected"),
    [
        ("string_match_all", "It is 12 and ABC.", ("12", "abc", "77", "99"), 0.5),
        ("string_match_part", "the Answer", ("nothing", "answer"), 1),
        ("string_match_part", "", ("answer",), 0),
    ],
)
def test_by_hand(metric, prediction, references, expected):
    assert METRICS[metric](prediction, references) == expected
