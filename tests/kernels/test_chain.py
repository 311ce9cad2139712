"""Launches that overlap: who asks for it, and that results do not depend on it."""

from __future__ import annotations

import pytest
import torch

import encoder_cases as encoders
import rank_cases as cases
from hata_kernels import chain
from hata_kernels.attend import AttendBuffers, attend
from hata_kernels.attend.gather import attend_parts
from hata_kernels.encoders import LinearEncoder
from hata_kernels.rank import rank, shared_values
from hata_kernels.rows import RowGroups, group_rows
from shared_cases import share


def captured(step, device: torch.device):
    """A function that runs a step: on a GPU the replay of a graph."""
    if device.type == "cpu":
        return step
    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step()

    def replay():
        graph.replay()
        return outputs

    return replay


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
    encoder = LinearEncoder.from_tensors({"weight": weight}, **shape).to("cuda", torch.bfloat16)
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
        q_codes = encoder.encode_step(q, k, codes=codes, slots=new_slots).codes
        return q_codes, rank(q_codes, codes, token_slots, lengths, budgets, **ends)

    run = captured(step, torch.device("cuda"))
    for _ in range(20):
        q.normal_()
        k.normal_()
        q_codes, result = run()
        inputs = (q_codes, codes, token_slots, lengths, budgets)
        assert torch.equal(result.cpu(), rank(*(x.cpu() for x in inputs), **ends))


def test_layers_of_a_step_many_times(any_device) -> None:
    """Encode, rank and attend in layers that share scratch, for rows of which some share tiles."""
    device, dtype = any_device, torch.bfloat16 if any_device.type == "cuda" else torch.float32
    kv_heads, group, dim, k_max, slots = 2, 4, 64, 700, 12000
    lengths = [2300, 2100, 2500, 2049, 2222, 1900, 700, 2800]
    table = share(lengths, "aaaaabcd", [2048] * 8, slots - 8)
    new_slots = torch.arange(slots - 8, slots, device=device)  # that no other row has
    for row, length in enumerate(lengths):
        table[row, length - 1] = slots - 8 + row
    table, seq_lens = table.to(device), torch.tensor(lengths, dtype=torch.int32, device=device)
    budgets = torch.tensor([500, 90, 700, 64, 300, 700, 700, 130], dtype=torch.int32).to(device)
    groups = RowGroups(8, table.shape[1], device)
    group_rows(table, seq_lens, longest=max(lengths), groups=groups)
    assert groups.sizes.tolist() == [5] + [0] * 7
    rows = (table, seq_lens, budgets)
    assert attend_parts(8 * kv_heads, k_max)[0] > 1

    make = {"device": device, "dtype": dtype}
    layers = []
    for _ in range(3):
        encoder = encoders.make("asymmetric", kv_heads, group, dim, 128, stages=2, biased=True)
        encoder = encoder.to(**make)
        caches = [torch.randn(slots, kv_heads, dim, **make) for _ in range(2)]
        codes = torch.zeros(slots, kv_heads, encoder.words, dtype=torch.int32, device=device)
        encoder.encode_keys(caches[0], codes=codes, slots=torch.arange(slots, device=device))
        q = torch.randn(8, kv_heads * group, dim, **make)
        layers.append((encoder, *caches, codes, q, torch.randn(8, kv_heads, dim, **make)))
    options = {"plane_weights": encoder.plane_weights, "scale_bits": 0, "sink": 4, "recent": 1}
    values = shared_values(kv_heads, encoder.words, encoder.plane_weights)
    inputs = (None, codes, table, seq_lens)
    buffers = cases.make_buffers(inputs, options, device, k_max, values=values)
    options["k_max"] = k_max
    parts = AttendBuffers(8 * kv_heads, group, dim, k_max, device)
    scratch = encoder.step_scratch(8) if device.type == "cuda" else None

    def step() -> list[tuple[torch.Tensor, ...]]:
        outputs = []
        for encoder, k_cache, v_cache, codes, q, k in layers:
            k_cache.index_copy_(0, new_slots, k)
            queries = encoder.encode_step(q, k, codes=codes, slots=new_slots, scratch=scratch)
            shared = {"bias": queries.bias, "buffers": buffers, "groups": groups}
            picked = rank(queries.codes, codes, *rows, **options, **shared)
            tokens = (q, k_cache, v_cache, picked)
            out = attend(*tokens, seq_lens, budgets, scale=dim**-0.5, buffers=parts)
            outputs.append((queries, picked, out))
        return outputs

    run = captured(step, device)
    for _ in range(20 if device.type == "cuda" else 2):
        for *_, q, k in layers:
            q.normal_()
            k.normal_()
        for (_, k_cache, v_cache, codes, q, _), (queries, picked, out) in zip(
            layers, run(), strict=True
        ):
            on_cpu = [x.cpu() for x in (queries.codes, codes, *rows)]
            assert torch.equal(picked.cpu(), rank(*on_cpu, **options, bias=queries.bias.cpu()))
            tokens = [x.float().cpu() for x in (q, k_cache, v_cache)]
            expected = attend(*tokens, picked.cpu(), *on_cpu[3:], scale=dim**-0.5)
            torch.testing.assert_close(out.float().cpu(), expected, atol=2e-2, rtol=2e-2)
