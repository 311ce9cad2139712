"""What one rank has of a session: its heads, its layers, and the same codes as in the whole."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from hata_kernels.attend import RATIOS
from hata_kernels.encoders import AsymmetricEncoder, LinearEncoder, MlpEncoder
from hata_kernels.score.distance import DISTANCES
from hata_sglang.config import HataConfig
from hata_sglang.seams import session as seam
from hata_sglang.seams.session import Session
from hata_sglang.shape import ModelShape

KV_HEADS, GROUP, DIM, LAYERS = 4, 2, 16, 5
SHAPE = ModelShape(KV_HEADS * GROUP, KV_HEADS, DIM, num_layers=LAYERS, context_len=512)


def make_encoders():
    """One of each method, in layers 2 to 4."""
    rand, sizes = torch.randn, SHAPE.sizes
    heads = KV_HEADS * GROUP
    asymmetric = {
        "key_weight": rand(KV_HEADS, DIM, 64),
        "key_bias": rand(KV_HEADS, 64),
        "query_weight": rand(KV_HEADS, GROUP * DIM, 64),
        "query_bias": rand(KV_HEADS, 64),
        "residual_weight": rand(KV_HEADS, 32, 32),
        "scale_step": torch.rand(KV_HEADS) + 0.1,
        "distance_bias": -100 * torch.rand(KV_HEADS, DISTANCES),
    }
    mlps = {}
    for side in ("key", "query"):
        mlps |= {f"{side}.0.weight": rand(heads, DIM, 32), f"{side}.0.bias": rand(heads, 32)}
    return {
        2: LinearEncoder.from_tensors({"weight": rand(KV_HEADS, DIM, 96)}, **sizes),
        3: AsymmetricEncoder.from_tensors(asymmetric, **sizes, stages=2, scale_bits=8),
        4: MlpEncoder.from_tensors(mlps, **sizes),
    }


@pytest.fixture
def session():
    config = HataConfig.parse({"method": "random", "budget": 128})
    left_out = {layer: torch.rand(KV_HEADS * GROUP, RATIOS) for layer in (2, 4)}
    return Session(config, SHAPE, config.resolve(LAYERS, 512), make_encoders(), left_out)


def test_a_rank_with_everything_is_the_whole(session):
    assert session.on_rank(range(KV_HEADS), range(LAYERS)) is session


@pytest.mark.parametrize("heads", [range(2), range(2, 4), range(3, 4)], ids=str)
def test_codes_of_a_rank_are_those_of_the_whole(session, heads):
    rank = session.on_rank(heads, range(LAYERS))
    assert (rank.shape.num_kv_heads, rank.shape.num_heads) == (len(heads), GROUP * len(heads))
    k = torch.randn(30, KV_HEADS, DIM)
    q = torch.randn(30, KV_HEADS * GROUP, DIM)
    own, queries = k[:, list(heads)], q[:, GROUP * heads.start : GROUP * heads.stop]
    for layer, encoder in session.encoders.items():
        part = rank.encoders[layer]
        assert torch.equal(part.key_bits(own), encoder.key_bits(k)[:, list(heads)])
        assert torch.equal(part.query_bits_of(queries), encoder.query_bits_of(q)[:, list(heads)])
        if encoder.score_bias is not None:
            of_part, of_whole = part.encode_queries(queries), encoder.encode_queries(q)
            assert torch.equal(of_part.bias, of_whole.bias[:, list(heads)])
        if encoder.scale_bits:
            assert torch.equal(part.key_scales(own), encoder.key_scales(k)[:, list(heads)])
    for layer, weights in session.left_out.items():
        own_heads = slice(GROUP * heads.start, GROUP * heads.stop)
        assert torch.equal(rank.left_out[layer], weights[own_heads])
    whole, share = session.code_bytes_per_token, len(heads) / KV_HEADS
    assert rank.code_bytes_per_token == whole * share


def test_layers_of_a_rank_keep_their_numbers(session):
    rank = session.on_rank(range(KV_HEADS), range(1, 4))
    assert [plan.layer for plan in rank.plans] == [1, 2, 3]
    assert [plan.layer for plan in rank.sparse_plans] == [2, 3]
    assert set(rank.encoders) == {2, 3}
    assert set(rank.left_out) == {2}


@pytest.mark.parametrize(("rank", "size", "heads"), [(0, 1, [0, 1, 2, 3]), (1, 2, [2, 3])])
def test_sglang_says_which_rank_this_is(session, monkeypatch, rank, size, heads):
    from sglang.srt import runtime_context

    parallel = SimpleNamespace(attn_tp_rank=rank, attn_tp_size=size)
    monkeypatch.setattr(runtime_context, "get_parallel", lambda: parallel)
    monkeypatch.setattr(seam.Session, "of", lambda model_config: session)
    layers = SimpleNamespace(start_layer=0, end_layer=4)
    here = Session.of_rank(SimpleNamespace(model_config=None, layer_info=layers))
    assert here.shape.num_kv_heads == len(heads)
    assert [plan.layer for plan in here.plans] == [0, 1, 2, 3]
    weight = session.encoders[2].tensors()["weight"]
    assert torch.equal(here.encoders[2].tensors()["weight"], weight[heads])
