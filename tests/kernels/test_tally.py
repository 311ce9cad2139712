"""Tallies: what the launches count is what the references count, and what was given to them."""

from __future__ import annotations

import pytest
import torch

import encoder_cases as cases
import hata_kernels.tally as tallies
from hata_kernels.attend import api, attend, gather
from hata_kernels.attend.pages import write_pages

REFERENCE = api.gather_reference

START = 2**40  # beyond 32 bits


@pytest.fixture
def make_tally(device):
    return lambda where=device: torch.full((tallies.SIZE,), START, dtype=torch.int64, device=where)


def counted(tally: torch.Tensor) -> list[int]:
    return (tally.cpu() - START).tolist()


@pytest.mark.parametrize("tokens", [1, 70])
@cases.ALL
def test_keys_are_counted_once_and_padding_never(
    device, poison, make_tally, tokens, method, kv_heads, group, dim, bits, options
) -> None:
    encoder = cases.make(method, kv_heads, group, dim, bits, **options)
    there = encoder.to(device, torch.float32)
    k, q = torch.randn(tokens, kv_heads, dim), torch.randn(tokens, kv_heads * group, dim)
    slots = torch.randperm(99)[:tokens] + 1
    slots[tokens // 2 :] = 0  # of one token: its only one
    expected = [tokens // 2, 0, 0, 0]
    for launch in ("_launch_keys", "_launch_step"):
        codes, scales = cases.make_buffers(encoder, 100, poison, device)
        stored, tally = (codes, slots.to(device), scales), make_tally()
        if launch == "_launch_keys":
            there._launch_keys(k.to(device), *stored, tally)
        else:
            there._launch_step(q.to(device), k.to(device), *stored, None, tally)
        assert counted(tally) == expected
    codes, scales = cases.make_buffers(encoder, 100, poison)
    tally = make_tally("cpu")
    encoder.encode_step(q, k, codes=codes, slots=slots, scales=scales, tally=tally)
    assert counted(tally) == expected


# lengths, budgets, which rows are padding
BATCHES = [
    pytest.param([500], [60], [], id="one"),
    pytest.param([500, 30, 61, 300], [60, 60, 60, 7], [], id="four"),
    pytest.param([500, 30, 1, 1], [60, 60, 60, 60], [2, 3], id="padded"),
    pytest.param([1, 1], [60, 60], [0, 1], id="padding-alone"),
]


@pytest.mark.parametrize("programs", [1, 500], ids=["one-part", "parts"])
@pytest.mark.parametrize(("lengths", "budgets", "padding"), BATCHES)
def test_what_is_attended_is_counted(
    device, monkeypatch, make_tally, lengths, budgets, padding, programs
) -> None:
    monkeypatch.setattr(gather, "BLOCKS", (16, 16))
    monkeypatch.setattr(gather, "IN_FLIGHT", 16 * programs)
    rows, k_max, kv_heads, dim = len(lengths), 64, 3, 64
    slots = torch.randint(1, 900, (rows, kv_heads, k_max), dtype=torch.int32)
    slots[padding] = 0
    numbers = {"dtype": torch.float16}
    caches = [torch.randn(900, kv_heads, dim).to(**numbers) for _ in range(2)]
    q = torch.randn(rows, 2 * kv_heads, dim).to(**numbers)
    counts = (torch.tensor(lengths), torch.tensor(budgets, dtype=torch.int32))
    arguments = (q, *caches, slots, *counts)
    real = [row for row in range(rows) if row not in padding]
    attended = sum(min(lengths[row], budgets[row]) for row in real)
    expected = [0, int(bool(real)), sum(lengths[row] for row in real), attended]
    tally = make_tally()
    attend(*(x.to(device) for x in arguments), scale=0.1, tally=tally)
    assert counted(tally) == expected
    monkeypatch.setattr(api, "gather_reference", REFERENCE)
    tally = make_tally("cpu")
    attend(*arguments, scale=0.1, tally=tally)
    assert counted(tally) == expected


@pytest.mark.parametrize(("lengths", "budgets", "padding"), BATCHES)
def test_what_flashinfer_will_attend_is_counted(
    device, make_tally, lengths, budgets, padding
) -> None:
    rows, k_max, kv_heads = len(lengths), 64, 3
    slots = torch.randint(1, 900, (rows, kv_heads, k_max), dtype=torch.int32)
    slots[padding] = 0
    counts = torch.minimum(torch.tensor(lengths), torch.tensor(budgets))
    ends = counts.repeat_interleave(kv_heads).cumsum(0)
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), ends]).int()
    pages = torch.zeros(int(ends[-1]), dtype=torch.int32)
    tally, lengths = make_tally(), torch.tensor(lengths)
    write_pages(*(x.to(device) for x in (slots, indptr, pages, lengths)), tally)
    real = [row for row in range(rows) if row not in padding]
    totals = [int(x[real].sum()) for x in (lengths, counts)]
    assert counted(tally) == [0, int(bool(real)), *totals]
    with pytest.raises(ValueError, match="seq_lens: expected the contexts, to count them"):
        write_pages(slots.to(device), indptr.to(device), pages.to(device), tally=tally)


@pytest.mark.gpu
def test_every_replay_of_a_graph_is_counted(make_tally) -> None:
    shape, where = {"dtype": torch.bfloat16, "device": "cuda"}, {"device": "cuda"}
    q, k = torch.randn(2, 8, 128, **shape), torch.randn(2, 2, 128, **shape)
    caches = [torch.randn(900, 2, 128, **shape) for _ in range(2)]
    encoder = cases.make("asymmetric", 2, 4, 128, 128, stages=2).to("cuda", torch.bfloat16)
    codes = torch.zeros(900, 2, 4, dtype=torch.int32, **where)
    new_slots, slots = (
        torch.tensor([5, 0], **where),
        torch.ones(2, 2, 64, dtype=torch.int32, **where),
    )
    slots[1] = 0
    lengths, budgets = torch.tensor([300, 1], **where), torch.tensor([64, 64], **where).int()
    tally = make_tally("cuda")

    def step() -> None:
        encoder.encode_step(q, k, codes=codes, slots=new_slots, tally=tally)
        attend(q, *caches, slots, lengths, budgets, scale=0.1, tally=tally)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for _ in range(5):
        graph.replay()
    lengths[0] = 400
    graph.replay()
    assert counted(tally) == [7, 7, 6 * 300 + 400, 7 * 64]


def test_a_tally_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tally.dtype: expected torch.int64, found torch.int32"):
        tallies.count_encoded(torch.zeros(4, dtype=torch.int32), torch.ones(3))
