"""A bias by distance: its buckets, and its whole numbers in a query's scores."""

from __future__ import annotations

import math

import pytest
import torch

import encoder_cases as cases
from hata_kernels.encoders import AsymmetricEncoder, dense_scores
from hata_kernels.score.distance import DISTANCES, distance_bucket


def test_buckets_are_half_octaves() -> None:
    edges = {2**e + half * 2**e // 2 for e in range(22) for half in (0, 1)}
    distances = sorted({d for edge in edges for d in (edge - 2, edge - 1, edge) if d >= 0})
    found = distance_bucket(torch.tensor(distances)).tolist()
    exponents = [math.frexp(d + 1)[1] - 1 for d in distances]
    assert found == [
        2 * e + (2 * (d + 1) >= 3 * 2**e) for d, e in zip(distances, exponents, strict=True)
    ]
    assert found[0] == 0
    assert found == sorted(found)
    far = torch.tensor([2**21 - 1, 3 * 2**20 - 1, 2**23])
    assert distance_bucket(far).tolist() == [42, DISTANCES - 1, DISTANCES - 1]


@pytest.mark.parametrize("scale_bits", [0, 8, 16])
def test_whole_numbers_stand_for_the_bias(scale_bits: int) -> None:
    """In units of a query's scores, which a line through its u . s and scores shows."""
    sizes = {"num_kv_heads": 2, "group": 3, "head_dim": 32}
    options = {"query_bits": 8, "clip": 4.0, "scale_bits": scale_bits}
    tensors = cases.make_tensors("asymmetric", 2, 3, 32, 256, scale_bits=scale_bits, biased=True)
    bias = tensors["distance_bias"]
    bias *= 0.3  # so that scores do not reach 0
    biased = AsymmetricEncoder.from_tensors(tensors, **sizes, **options)
    without = {name: tensor for name, tensor in tensors.items() if name != "distance_bias"}
    plain = AsymmetricEncoder.from_tensors(without, **sizes, **options)
    q, k, positions = torch.randn(5, 6, 32), torch.randn(900, 2, 32), torch.arange(500, 505)
    scores, gained = (dense_scores(each, q, k, positions) for each in (plain, biased))
    assert gained.min() > 0
    gained -= scores

    u = torch.einsum("nhi,hir->nhr", q.reshape(5, 2, 96), tensors["query_weight"])
    u += tensors["query_bias"]
    signs = torch.where(plain.key_bits(k), 1.0, -1.0)
    if scale_bits:
        signs = signs * (plain.key_scales(k) * tensors["scale_step"])[..., None]
    products = torch.einsum("nhr,shr->hns", u, signs)
    unit = products.std(-1, keepdim=True) / scores.std(-1, keepdim=True)
    distance = (positions[:, None] - torch.arange(900)).clamp_min(0)
    expected = bias[:, distance_bucket(distance).long()]
    assert bool(((gained * unit - expected).abs() <= 0.5 * unit - 0.05 * expected).all())


@pytest.mark.parametrize("value", [0.5, float("nan"), float("-inf")])
def test_a_bias_is_finite_and_not_above_0(value: float) -> None:
    tensors = cases.make_tensors("asymmetric", 2, 1, 32, 64, biased=True)
    tensors["distance_bias"][1, 3] = value
    with pytest.raises(ValueError, match="distance_bias: expected finite numbers, none above 0"):
        AsymmetricEncoder.from_tensors(tensors, num_kv_heads=2, group=1, head_dim=32)
