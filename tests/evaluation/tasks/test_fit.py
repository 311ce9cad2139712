import pytest

from hata_sglang.evaluation.tasks.base import largest


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
