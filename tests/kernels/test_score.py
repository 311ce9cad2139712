"""Scores of the reference against loops over bits, exactly."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hata_kernels.score import score_levels, score_naive
from hata_kernels.score.levels import score_shift
from hata_kernels.score.scoring import Scoring

SLOTS = 1500

# lengths, width, KV heads, plane weights, words, sink, recent
CASES = [
    pytest.param([1], 1, 3, (1,) * 3, 4, 0, 0, id="ctx1-width1"),
    pytest.param([1, 7], 600, 2, (1,), 1, 4, 8, id="shorter-than-sink-and-recent"),
    pytest.param([512, 513, 511], 513, 1, (1,) * 4, 4, 1, 1, id="around-a-block"),
    pytest.param([63, 1200, 640], 1200, 3, (1,) * 3, 4, 16, 32, id="ragged-G3"),
    pytest.param([700], 1024, 2, (1,) * 8, 3, 0, 64, id="three-words-G8"),
    pytest.param([300, 20], 301, 1, (1,) * 16, 4, 2, 0, id="float32-scores-G16"),
    pytest.param([129], 200, 2, (1,) * 5, 2, 3, 200, id="all-recent-G5"),
    pytest.param([65, 400], 400, 2, (1, 2, 4, 8), 4, 2, 4, id="four-bit-query"),
    pytest.param([150], 155, 3, (1, 2), 3, 0, 5, id="two-bit-query-three-words"),
    pytest.param([90, 4], 91, 1, tuple(2**p for p in range(8)), 8, 1, 0, id="eight-bit-query"),
    pytest.param([80], 80, 2, (3, 1, 3, 5, 3), 1, 0, 0, id="any-weights"),
]
SCALE_BITS = pytest.mark.parametrize("scale_bits", [0, 8, 16], ids="scales{}".format)


def hamming(a: int, b: int) -> int:
    return bin((a ^ b) & 0xFFFFFFFF).count("1")


def brute_force(q_codes, codes, token_slots, lengths, weights, sink, recent, scales, bits) -> dict:
    """Scores by (batch, head, token), bit by bit, in Python's unbounded integers."""
    batch, _, words = q_codes.shape
    kv_heads, planes = codes.shape[1], len(weights)
    q_words, k_words, table = q_codes.tolist(), codes.tolist(), token_slots.tolist()
    full = sum(weights) * words * 32
    most, shift, highest = 2**bits - 1, 0, full
    if bits:
        while 2 * full * most >> shift >= 2047:
            shift += 1
        highest = 2 * full * most >> shift
    scores = {}
    for b in range(batch):
        for h in range(kv_heads):
            for t in range(lengths[b]):
                if t < sink or t >= lengths[b] - recent:
                    scores[b, h, t] = highest + 1
                    continue
                key = k_words[table[b][t]][h]
                agreement = sum(
                    weight * (32 - hamming(query, word))
                    for weight, query_words in zip(
                        weights, q_words[b][h * planes : (h + 1) * planes], strict=True
                    )
                    for query, word in zip(query_words, key, strict=True)
                )
                if bits:
                    scale = int(scales[table[b][t], h]) % 2**bits
                    agreement = ((2 * agreement - full) * scale + full * most) >> shift
                scores[b, h, t] = agreement
    return scores


def random_scales(scale_bits: int, *shape: int) -> torch.Tensor | None:
    """Any bit pattern, the largest and 0 among them."""
    if scale_bits == 0:
        return None
    values = torch.randint(0, 2**scale_bits, shape)
    values[torch.rand(shape) < 0.1] = 2**scale_bits - 1
    values[torch.rand(shape) < 0.1] = 0
    return values.to({8: torch.uint8, 16: torch.int16}[scale_bits])


def random_words(*shape: int) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int32)


@SCALE_BITS
@pytest.mark.parametrize(
    ("lengths", "width", "kv_heads", "weights", "words", "sink", "recent"), CASES
)
def test_naive_counts_agreeing_bits(
    make_token_slots, lengths, width, kv_heads, weights, words, sink, recent, scale_bits
) -> None:
    codes = random_words(SLOTS, kv_heads, words)
    q_codes = random_words(len(lengths), kv_heads * len(weights), words)
    # The extremes of the range: a key that agrees in every bit, and one that disagrees in all.
    q_codes[:, : len(weights)] = q_codes[:, :1]
    codes[::7, 0], codes[1::7, 0] = q_codes[0, 0], ~q_codes[0, 0]
    scales = random_scales(scale_bits, SLOTS, kv_heads)
    token_slots = make_token_slots(lengths, width, SLOTS)
    out = score_naive(
        q_codes,
        codes,
        token_slots,
        torch.tensor(lengths),
        plane_weights=weights,
        sink=sink,
        recent=recent,
        scales=scales,
        scale_bits=scale_bits,
    )
    expected = brute_force(
        q_codes, codes, token_slots, lengths, weights, sink, recent, scales, scale_bits
    )
    for (b, h, t), value in expected.items():
        assert out[b, h, t] == value, (b, h, t)
    for b, length in enumerate(lengths):
        assert out[b, :, length:].eq(0).all()
    levels = score_levels(weights, words * 32, scale_bits)
    assert out.min() >= 0
    assert out.max() < levels
    if scale_bits:
        assert 1024 <= levels <= 2048


@given(st.integers(1, 8), st.integers(1, 8), st.sampled_from([8, 16]))
def test_scaled_scores_have_few_values_and_no_bit_is_wasted(planes, words, scale_bits) -> None:
    weights = [2**plane for plane in range(planes)]
    full, most = sum(weights) * words * 32, 2**scale_bits - 1
    shift = score_shift(full, scale_bits)
    levels = score_levels(weights, words * 32, scale_bits)
    assert levels == (2 * full * most >> shift) + 2 <= 2048
    assert shift == 0 or 2 * full * most >> (shift - 1) >= 2047


def test_compiled_kernels_are_told_apart_by_all_that_they_depend_on(monkeypatch) -> None:
    """Triton's cache on disk knows a constant by its text, and outlives this package's versions."""
    scoring = Scoring(8, 4, (1, 2, 4, 8), 8, True, True)
    before = str(scoring)
    derived = [name for name, of in vars(Scoring).items() if isinstance(of, property)]
    assert len(derived) > 10
    assert all(f"{name}={getattr(scoring, name)}" in before for name in derived)
    monkeypatch.setattr("hata_kernels.score.scoring.score_shift", lambda *_: 17)
    assert str(scoring) != before
