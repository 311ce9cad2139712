import pytest

from hata_sglang.evaluation.tasks import TASKS
from hata_sglang.evaluation.tasks.fit import largest


def test_depths_are_taken_in_turn(tokenizer):
    samples = TASKS["needle"].samples(22, 3000, tokenizer, 0)
    assert [sample.info["depth"] for sample in samples] == [n / 10 for n in range(11)] * 2
    for sample in samples:
        (number,) = sample.references
        fact = sample.prompt.index(f" is {number}.")
        assert fact / len(sample.prompt) == pytest.approx(sample.info["depth"], abs=0.03)
        city = sample.prompt.split("number of ")[-1].rstrip("?")
        assert f"The special magic number of {city} is {number}." in sample.prompt
    first, second = samples[0].prompt, samples[11].prompt
    assert first[60:300] != second[60:300]


def test_a_round_shares_its_prose(tokenizer):
    early, late = TASKS["needle"].samples(11, 3000, tokenizer, 0)[5::5]
    before = early.prompt.index("The special magic")
    assert early.prompt[:before] == late.prompt[:before]
    assert before > 1000


@pytest.mark.parametrize("size", [lambda n: 7 * n + 3, lambda n: n * n, lambda n: 40 * (n // 9)])
@pytest.mark.parametrize("start", [1, 50, 100_000])
@pytest.mark.parametrize("limit", [0, 45, 1000, 123_456])
def test_largest_is_what_a_scan_finds(size, start, limit):
    calls = []

    def measure(units: int) -> int:
        calls.append(units)
        return size(units)

    found = largest(measure, limit, least=0, most=20_000, start=start)
    assert found == max((n for n in range(20_001) if size(n) <= limit), default=-1)
    assert len(calls) < 50


def test_largest_stops_at_the_most_there_is():
    assert largest(lambda n: n, 1000, least=2, most=17, start=5) == 17
    assert largest(lambda n: n, 1000, least=17, most=17, start=5) == 17
