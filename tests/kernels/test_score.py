"""Scores: the CPU scorer against loops over bits, the Triton one against the CPU one, exactly."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hata_kernels.score import (
    exact_score_naive,
    score,
    score_dtype,
    score_levels,
    score_naive,
)
from hata_kernels.score.naive import vote_planes
from hata_kernels.score.triton import score_triton

SLOTS = 1500

# lengths, width, KV heads, group, words, sink, recent
CASES = [
    pytest.param([1], 1, 3, 3, 4, 0, 0, id="ctx1-width1"),
    pytest.param([1, 7], 600, 2, 1, 1, 4, 8, id="shorter-than-sink-and-recent"),
    pytest.param([512, 513, 511], 513, 1, 4, 4, 1, 1, id="around-a-block"),
    pytest.param([63, 1200, 640], 1200, 3, 3, 4, 16, 32, id="ragged-G3"),
    pytest.param([700], 1024, 2, 8, 3, 0, 64, id="three-words-G8"),
    pytest.param([300, 20], 301, 1, 16, 4, 2, 0, id="float32-scores-G16"),
    pytest.param([129], 200, 2, 5, 2, 3, 200, id="all-recent-G5"),
]


def hamming(a: int, b: int) -> int:
    return bin((a ^ b) & 0xFFFFFFFF).count("1")


def brute_force(q_codes, codes, token_slots, lengths, sink, recent) -> dict:
    """Scores by (batch, head, token), bit by bit."""
    batch, q_heads, words = q_codes.shape
    kv_heads = codes.shape[1]
    group = q_heads // kv_heads
    q_words, k_words, table = q_codes.tolist(), codes.tolist(), token_slots.tolist()
    scores = {}
    for b in range(batch):
        for h in range(kv_heads):
            for t in range(lengths[b]):
                if t < sink or t >= lengths[b] - recent:
                    scores[b, h, t] = group * words * 32 + 1
                    continue
                key = k_words[table[b][t]][h]
                scores[b, h, t] = sum(
                    32 - hamming(query, word)
                    for query_words in q_words[b][h * group : (h + 1) * group]
                    for query, word in zip(query_words, key, strict=True)
                )
    return scores


def random_words(*shape: int) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int32)


@pytest.mark.parametrize(
    ("lengths", "width", "kv_heads", "group", "words", "sink", "recent"), CASES
)
def test_naive_counts_agreeing_bits(
    poison, make_token_slots, lengths, width, kv_heads, group, words, sink, recent
) -> None:
    codes = random_words(SLOTS, kv_heads, words)
    q_codes = random_words(len(lengths), kv_heads * group, words)
    token_slots = make_token_slots(lengths, width, SLOTS)
    out = poison(len(lengths), kv_heads, width, dtype=score_dtype(group, words * 32))
    score_naive(
        q_codes, codes, token_slots, torch.tensor(lengths), sink=sink, recent=recent, out=out
    )
    expected = brute_force(q_codes, codes, token_slots, lengths, sink, recent)
    for (b, h, t), value in expected.items():
        assert out[b, h, t] == value, (b, h, t)
    for b, length in enumerate(lengths):
        assert out[b, :, length:].isnan().all()
    assert out.nan_to_num().max() < score_levels(group, words * 32)


@pytest.mark.parametrize("length_dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize(
    ("lengths", "width", "kv_heads", "group", "words", "sink", "recent"), CASES
)
def test_triton_equals_naive(
    device,
    poison,
    make_token_slots,
    length_dtype,
    lengths,
    width,
    kv_heads,
    group,
    words,
    sink,
    recent,
) -> None:
    codes = random_words(SLOTS, kv_heads, words)
    q_codes = random_words(len(lengths), kv_heads * group, words)
    # A wider table than the scores, as a view of SGLang's req_to_token may be.
    token_slots = make_token_slots(lengths, width + 4, SLOTS)
    dtype = score_dtype(group, words * 32)
    arguments = (q_codes, codes, token_slots, torch.tensor(lengths, dtype=length_dtype))
    expected = poison(len(lengths), kv_heads, width, dtype=dtype)
    score_naive(*arguments, sink=sink, recent=recent, out=expected)
    out = poison(len(lengths), kv_heads, width, dtype=dtype, device=device)
    score_triton(*(a.to(device) for a in arguments), sink=sink, recent=recent, out=out)
    torch.testing.assert_close(out.cpu(), expected, rtol=0, atol=0, equal_nan=True)


def test_triton_keeps_the_next_row_when_a_length_exceeds_the_width(device, poison) -> None:
    codes, q_codes = random_words(50, 1, 1), random_words(2, 1, 1)
    token_slots = torch.randint(0, 50, (2, 40), dtype=torch.int32)
    out = poison(2, 1, 20, dtype=torch.float16, device=device)
    lengths = torch.tensor([40, 3])
    score_triton(
        *(a.to(device) for a in (q_codes, codes, token_slots, lengths)), sink=0, recent=0, out=out
    )
    assert out[1, :, 3:].isnan().all()


@given(st.integers(1, 12), st.data())
def test_merged_queries_have_the_same_summed_distance(group: int, data) -> None:
    word = st.integers(-(2**31), 2**31 - 1)
    queries = torch.tensor(
        data.draw(st.lists(word, min_size=group, max_size=group)), dtype=torch.int32
    )
    key = data.draw(word)
    planes = vote_planes(queries.view(group, 1))
    assert sum(weight for weight, _ in planes) == group
    assert len(planes) <= group
    merged = sum(weight * hamming(key, int(query)) for weight, query in planes)
    assert merged == sum(hamming(key, query) for query in queries.tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_exact_score_sums_the_groups_softmax(poison, make_token_slots, dtype) -> None:
    lengths, kv_heads, group, dim, scale = [1, 37, 90], 2, 3, 16, 0.3
    k_cache = torch.randn(100, kv_heads, dim).to(dtype)
    q = torch.randn(3, kv_heads * group, dim).to(dtype)
    token_slots = make_token_slots(lengths, 90, 100)
    out = poison(3, kv_heads, 90, dtype=torch.float32)
    exact_score_naive(
        q, k_cache, token_slots, torch.tensor(lengths), scale=scale, sink=2, recent=3, out=out
    )
    for b, length in enumerate(lengths):
        table = token_slots[b].tolist()
        for h in range(kv_heads):
            expected = [0.0] * length
            for member in range(group):
                query = q[b, h * group + member].double()
                logits = [
                    scale * float(query @ k_cache[table[t], h].double()) for t in range(length)
                ]
                peak = max(logits)
                total = sum(math.exp(logit - peak) for logit in logits)
                for t, logit in enumerate(logits):
                    expected[t] += math.exp(logit - peak) / total
            for t in range(length):
                if t < 2 or t >= length - 3:
                    assert out[b, h, t] == math.inf
                else:
                    assert float(out[b, h, t]) == pytest.approx(expected[t], rel=1e-4)
        assert out[b, :, length:].isnan().all()


@pytest.mark.parametrize(
    ("group", "bits", "dtype"),
    [(4, 128, torch.float16), (8, 256, torch.float32), (1, 2016, torch.float16)],
    ids=str,
)
def test_score_dtype_holds_every_level(group: int, bits: int, dtype: torch.dtype) -> None:
    assert score_dtype(group, bits) == dtype
    levels = torch.arange(score_levels(group, bits))
    assert torch.equal(levels.to(dtype).long(), levels)


GOOD = {
    "q_codes": torch.zeros(2, 6, 4, dtype=torch.int32),
    "codes": torch.zeros(50, 3, 4, dtype=torch.int32),
    "token_slots": torch.zeros(2, 10, dtype=torch.int32),
    "seq_lens": torch.tensor([5, 10]),
    "sink": 1,
    "recent": 1,
    "out": torch.zeros(2, 3, 10, dtype=torch.float16),
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"out": GOOD["out"].float()}, r"out\.dtype: expected torch\.float16"),
        ({"out": torch.zeros(2, 3, 11).half()}, "at least .* = 11, found 10"),
        ({"q_codes": GOOD["q_codes"][..., :2].contiguous()}, r"q_codes\.shape: expected \[any, a"),
        ({"q_codes": torch.zeros(2, 4, 4, dtype=torch.int32)}, "a multiple of 3, found 4"),
        ({"codes": GOOD["codes"].transpose(0, 1)}, "codes strides: expected a contiguous tensor"),
        ({"token_slots": GOOD["token_slots"].long()}, r"token_slots\.dtype"),
        ({"sink": -1}, "sink: expected at least 0, found -1"),
        ({"seq_lens": torch.tensor([5.0, 10.0])}, r"seq_lens\.dtype"),
    ],
    ids=["out-dtype", "width", "words", "heads", "strides", "slots-dtype", "sink", "lens-dtype"],
)
def test_wrong_arguments_are_named(changed, message: str) -> None:
    for implementation in (score, score_triton):
        with pytest.raises(ValueError, match=message):
            implementation(**{**GOOD, **changed})


@pytest.mark.parametrize("lengths", [[0, 5], [5, 11]], ids=["zero", "beyond-width"])
def test_naive_refuses_impossible_lengths(lengths) -> None:
    with pytest.raises(ValueError, match="seq_lens: expected 1 to 10"):
        score_naive(**{**GOOD, "seq_lens": torch.tensor(lengths)})
