"""Dense scores are the very integers that serving ranks by."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import encoder_cases as cases
from hata_kernels.encoders import Encoder, dense_scores
from hata_kernels.score import score_naive


def check_dense_is_what_serving_ranks_by(encoder: Encoder, tokens: int, keys: int) -> None:
    heads, dim = encoder.num_kv_heads, encoder.head_dim
    q, k = torch.randn(tokens, heads * encoder.group, dim), torch.randn(keys, heads, dim)
    k *= torch.rand(keys, heads, 1) * 2
    codes = torch.zeros(keys, heads, encoder.words, dtype=torch.int32)
    scales = None
    if encoder.scale_bits:
        scales = torch.zeros(keys, heads, dtype=encoder.scale_dtype)
    encoder.encode_keys(k, codes=codes, slots=torch.arange(keys), scales=scales)
    lengths = torch.randint(1, keys + 1, (tokens,))
    queries = encoder.encode_queries(q)
    scores = score_naive(
        queries.codes,
        codes,
        torch.arange(keys, dtype=torch.int32).repeat(tokens, 1),
        lengths,
        plane_weights=encoder.plane_weights,
        sink=0,
        recent=0,
        scales=scales,
        scale_bits=encoder.scale_bits,
        bias=queries.bias,
    )
    dense = dense_scores(encoder, q, k, lengths - 1)
    assert dense.dtype == torch.float32
    assert dense.shape == (heads, tokens, keys)
    seen = (torch.arange(keys) < lengths[:, None]).expand_as(dense)
    assert torch.equal(dense[seen], scores.transpose(0, 1)[seen])
    assert 0 <= dense.min() <= dense.max() <= encoder.levels - 2
    biased = "distance_bias" in encoder.tensors()
    if isinstance(encoder, cases.AsymmetricEncoder) and encoder.scale_bits == 0 and not biased:
        levels = 2 * encoder.query_levels(q).double() + 1
        signs = torch.where(encoder.key_bits(k), 1.0, -1.0).double()
        full = encoder.bits * (2**encoder.query_bits - 1)
        expected = (full + torch.einsum("nhr,shr->hns", levels, signs)) / 2
        assert torch.equal(dense.double(), expected)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 5), st.sampled_from([16, 63, 64]), st.integers(1, 8),
    st.integers(1, 8), st.sampled_from([0, 8, 16]), st.sampled_from([0.5, 2.5, 9.0]),
    st.integers(1, 2), st.booleans(), st.integers(1, 9), st.integers(1, 60),
)  # fmt: skip
def test_dense_scores_asymmetric(
    kv_heads, group, dim, words, query_bits, scale_bits, clip, stages, biased, n, s
) -> None:
    options = {"query_bits": query_bits, "scale_bits": scale_bits, "clip": clip, "stages": stages}
    options["biased"] = biased
    encoder = cases.make("asymmetric", kv_heads, group, dim, 32 * words, **options)
    check_dense_is_what_serving_ranks_by(encoder, n, s)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 9), st.integers(1, 8), st.sampled_from([0, 8, 16]),
    st.integers(1, 9), st.integers(1, 60),
)  # fmt: skip
def test_dense_scores_hata(kv_heads, group, words, scale_bits, n, s) -> None:
    encoder = cases.make("hata", kv_heads, group, 64, 32 * words, scale_bits=scale_bits)
    check_dense_is_what_serving_ranks_by(encoder, n, s)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 5), st.lists(st.integers(1, 50), max_size=2),
    st.integers(1, 9), st.integers(1, 60),
)  # fmt: skip
def test_dense_scores_hashattention(kv_heads, group, hidden, n, s) -> None:
    encoder = cases.make("hashattention", kv_heads, group, 64, hidden=tuple(hidden))
    assert encoder.bits == 32 * group
    check_dense_is_what_serving_ranks_by(encoder, n, s)
