"""Times of chunks: first tokens, gaps, the steady state."""

import asyncio

import pytest

from hata_sglang.bench.streaming import Speed, Stream, record


def chunk(count, **meta):
    return {"meta_info": {"completion_tokens": count, **meta}}


def test_record():
    clock = iter([0.0, 1.0, 1.5, 2.0]).__next__

    async def chunks():
        for count in (1, 2, 4, 4):  # the last one says that it ended
            yield chunk(count, cached_tokens=96)

    stream = asyncio.run(record(chunks(), clock))
    assert stream == Stream(0.0, (1.0, 1.5, 2.0), (1, 2, 4), cached=96)


def test_a_chunk_of_several_tokens_is_spread_over_them():
    stream = Stream(0.0, (1.0, 1.2, 1.8), (1, 2, 5))
    assert stream.gaps_ms(0, 9) == pytest.approx([200, 200, 200, 200])
    assert stream.gaps_ms(1.1, 9) == pytest.approx([200, 200, 200])
    assert stream.gaps_ms(0, 1.7) == pytest.approx([200])
    assert stream.gaps_ms(2.0, 9) == []


def test_steady_state_is_from_the_last_start_to_the_first_end():
    early = Stream(0.0, (1.0, 3.0, 3.1, 3.2, 3.3), (1, 2, 3, 4, 5))
    late = Stream(0.5, (3.0, 3.1, 3.2, 3.3, 3.4), (1, 2, 3, 4, 5))
    speed = Speed.of([early, late])
    assert speed.ttft_p50_s == pytest.approx(1.75)
    assert speed.ttft_max_s == pytest.approx(2.5)
    assert speed.steady_s == pytest.approx(0.3)
    # Three steps of both; the stall of the early one before 3.0 s is not decoding.
    assert speed.decode_tokens_per_s == pytest.approx(6 / 0.3)
    assert speed.itl_p50_ms == pytest.approx(100)
    assert speed.itl_p99_ms == pytest.approx(100)
    assert speed.output_tokens == 10


def test_no_steady_state():
    first = Stream(0.0, (1.0, 1.1), (1, 2))
    second = Stream(0.0, (5.0, 5.1), (1, 2))
    speed = Speed.of([first, second])
    assert speed.decode_tokens_per_s is None
    assert speed.steady_s == 0
    assert speed.ttft_p50_s == 3
