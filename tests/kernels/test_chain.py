"""Launches that overlap: who asks for it, and that results do not depend on it."""

from __future__ import annotations

import pytest
import torch

from hata_kernels import chain
from hata_kernels.encoders import make_encoder
from hata_kernels.rank import rank, rank_naive


def test_a_cpu_does_not_overlap() -> None:
    assert chain.chain_options(torch.device("cpu")) == {"PDL": False}
    chain.most_cache(None)  # what a launch returns in Triton's interpreter


@pytest.mark.gpu
def test_a_gpu_overlaps_from_hopper_on(monkeypatch) -> None:
    device = torch.device("cuda")
    can = torch.cuda.get_device_capability() >= (9, 0)
    wanted = {"PDL": True, "launch_pdl": True} if can else {"PDL": False}
    assert chain.chain_options(device) == wanted
    monkeypatch.setattr(chain, "ENABLED", False)
    assert chain.chain_options(device) == {"PDL": False}


@pytest.mark.gpu
@pytest.mark.parametrize("enabled", [True, False])
def test_a_captured_step_many_times(enabled, monkeypatch) -> None:
    """Encode and rank in a graph, replayed with new queries and keys: each as the reference."""
    monkeypatch.setattr(chain, "ENABLED", enabled)
    kv_heads, group, dim, bits, slots, length = 8, 4, 128, 128, 9000, 8191
    weight = torch.randn(kv_heads, dim, bits)
    shape = {"num_kv_heads": kv_heads, "group": group, "head_dim": dim}
    encoder = make_encoder("hata", {"weight": weight}, **shape).to("cuda", torch.bfloat16)
    make = {"device": "cuda", "dtype": torch.bfloat16}
    cache = torch.randn(slots, kv_heads, dim, **make)
    codes = torch.empty(slots, kv_heads, encoder.words, dtype=torch.int32, device="cuda")
    encoder.encode_keys(cache, codes=codes, slots=torch.arange(slots, device="cuda"))
    order = torch.randperm(slots - 1, device="cuda")[:length].int() + 1
    token_slots = order[None].repeat(2, 1).contiguous()
    lengths = torch.tensor([length, 5000], device="cuda")
    budgets = torch.tensor([128, 300], dtype=torch.int32, device="cuda")
    new_slots = torch.stack([token_slots[0, length - 1], token_slots[1, 4999]])
    q = torch.randn(2, kv_heads * group, dim, **make)
    k = torch.randn(2, kv_heads, dim, **make)
    ends = {"plane_weights": encoder.plane_weights, "sink": 4, "recent": 1, "k_max": 300}

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        q_codes = encoder.encode_step(q, k, codes=codes, slots=new_slots)
        return q_codes, rank(q_codes, codes, token_slots, lengths, budgets, **ends)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        q_codes, result = step()
    for _ in range(20):
        q.normal_()
        k.normal_()
        graph.replay()
        inputs = (q_codes, codes, token_slots, lengths, budgets)
        assert torch.equal(result.cpu(), rank_naive(*(x.cpu() for x in inputs), **ends))
