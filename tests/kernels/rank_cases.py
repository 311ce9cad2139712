"""What several tests of ranking share: random inputs, scratch full of garbage, what is right."""

from __future__ import annotations

import dataclasses
from unittest import mock

import pytest
import torch

import hata_kernels.rank
import hata_kernels.rank.buffers as sizing
import hata_kernels.rank.filter as filtering
import hata_kernels.rank.floor as sampling
import hata_kernels.rank.take as taking
import hata_kernels.rank.triton as launches
from hata_kernels.rank import RankBuffers, RankSizes, rank
from hata_kernels.score import score_levels
from hata_kernels.score.distance import DISTANCES, LEAST
from hata_kernels.score.scoring import Scoring


def rank_triton(*arguments, **options) -> torch.Tensor:
    """`rank` by Triton, wherever the tensors are."""
    with mock.patch.object(hata_kernels.rank, "rank_naive", launches.rank_triton):
        return rank(*arguments, **options)


def random_words(*shape: int) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int32)


def make_codes(requests, slots, kv_heads, words, weights, scale_bits):
    """Codes of queries and keys, and keyword arguments of both."""
    codes = random_words(slots, kv_heads, words)
    q_codes = random_words(requests, kv_heads * len(weights), words)
    # The extremes of the range: a key that agrees in every bit, and one that disagrees in all.
    q_codes[:, : len(weights)] = q_codes[:, :1]
    codes[::97, 0], codes[1::97, 0] = q_codes[0, 0], ~q_codes[0, 0]
    scales = None
    if scale_bits:
        scales = torch.randint(0, 2**scale_bits, (slots, kv_heads))
        scales[::5], scales[1::5] = 0, 2**scale_bits - 1
        scales = scales.to({8: torch.uint8, 16: torch.int16}[scale_bits])
    options = {"plane_weights": weights, "scales": scales, "scale_bits": scale_bits, "bias": None}
    return (q_codes, codes), options


def with_bias(inputs, options):
    """The options with a bias by distance, of about as much as scores differ, or the most."""
    requests, (_, kv_heads, words) = len(inputs[0]), inputs[1].shape
    levels = score_levels(options["plane_weights"], 32 * words, options["scale_bits"])
    bias = -torch.randint(0, max(4, levels // 16), (requests, kv_heads, DISTANCES))
    bias[torch.rand(bias.shape) < 0.1] = LEAST
    bias[requests // 2, 0] = LEAST  # a row of zeros
    return {**options, "bias": bias.int()}


def make_inputs(make_token_slots, lengths, kv_heads, words, weights, scale_bits):
    """Positional and keyword arguments of both."""
    slots = max(lengths) + 50
    codes, options = make_codes(len(lengths), slots, kv_heads, words, weights, scale_bits)
    token_slots = make_token_slots(lengths, max(lengths) + 5, slots)
    return (*codes, token_slots, torch.tensor(lengths)), options


def fill_with_garbage(holder):
    """Fill the tensors of buffers or groups; returns these."""
    for tensor in tensors_of(holder):
        most = torch.iinfo(tensor.dtype).max
        tensor.copy_(torch.randint(-most, most, tensor.shape, dtype=tensor.dtype))
    return holder


def tensors_of(holder) -> list[torch.Tensor]:
    return [value for value in vars(holder).values() if isinstance(value, torch.Tensor)]


def sizes_of(inputs, options, k_max, *, width=0, values=0) -> RankSizes:
    """Sizes of scratch for at least the call of these arguments."""
    codes, token_slots = inputs[1:3]
    kv_heads, words = codes.shape[1:]
    levels = score_levels(options["plane_weights"], 32 * words, options["scale_bits"])
    return RankSizes.of(kv_heads, words, levels, max(width, token_slots.shape[1]), k_max, values)


def make_buffers(inputs, options, device, k_max, *, rows=0, width=0, values=0) -> RankBuffers:
    """Such scratch, full of garbage."""
    sizes = sizes_of(inputs, options, k_max, width=width, values=values)
    rows = max(rows, inputs[2].shape[0] * inputs[1].shape[1])
    return fill_with_garbage(RankBuffers(rows, sizes, device))


def sections(inputs, options) -> int:
    """Lists that a row has in the call of these arguments, without groups."""
    scoring = Scoring.of(inputs[1], options["plane_weights"], options["scale_bits"], False)
    return sizing.Tiling.of(inputs[2].shape[0] * scoring.heads, scoring, 0).sections


def found_in(buffers, inputs, options) -> torch.Tensor:
    """Candidates ``[sections, requests, heads]`` of the last call, without groups."""
    shape = (sections(inputs, options), inputs[2].shape[0], inputs[1].shape[1])
    return buffers.found.flatten()[: shape[0] * shape[1] * shape[2]].view(shape).cpu()


def found_of(found, requests: int, kv_heads: int, values: int) -> torch.Tensor:
    """Candidates ``[requests, heads]`` of rows that have one list."""
    steps = sizing.found_steps(requests, kv_heads, values)
    return found.flatten().as_strided((requests, kv_heads), steps).cpu()


@pytest.fixture(params=["one-list", "sections"])
def lists(request, monkeypatch) -> None:
    """Rows have one list, or one for every section where scores have few enough values."""
    if request.param == "one-list":
        monkeypatch.setattr(sizing, "SECTIONED_ROWS", 0)
    else:
        monkeypatch.setattr(sizing, "SECTIONED_ROWS", 10**6)
        monkeypatch.setattr(sizing, "SECTION_TOKENS", 1)


def check(device, poison, inputs, options, budgets, *, sink, recent, k_max, buffers=None) -> None:
    """Triton selects what the reference does; it takes budgets above k_max for k_max."""
    arguments = (*inputs, torch.tensor(budgets, dtype=torch.int32))
    options = {**options, "sink": sink, "recent": recent, "k_max": k_max}
    out = poison(len(budgets), inputs[1].shape[1], k_max, dtype=torch.int32)
    expected = rank(*inputs, arguments[4].clamp(max=k_max), **options, out=out)
    assert expected is out
    assert not expected.eq(-987654321).any()
    found = poison(*out.shape, dtype=torch.int32, device=device)
    moved = move(device, arguments, options)
    assert rank_triton(*moved[0], **moved[1], out=found, buffers=buffers) is found
    assert torch.equal(found.cpu(), expected)


def move(device, arguments, options):
    """Arguments on the device; token slots stay a slice of a wider table, full of garbage."""
    moved = [argument.to(device) for argument in arguments]
    rows, width = arguments[2].shape
    table = random_words(rows, width + 7).to(device)
    moved[2] = table[:, 3 : width + 3].copy_(moved[2])
    return moved, on(device, options)


def on(device, options):
    """Options whose tensors are on the device."""
    moved = {name: options[name] for name in ("scales", "bias")}
    moved = {name: x if x is None else x.to(device) for name, x in moved.items()}
    return options | moved


@pytest.fixture
def small(monkeypatch) -> None:
    """A sample and short contexts of a few hundred tokens."""
    monkeypatch.setattr(sampling, "SAMPLE", 128)
    monkeypatch.setattr(sampling, "UNSAMPLED", 300)


def set_room(monkeypatch, room: int) -> None:
    """Give every list room for so many candidates."""
    of = RankSizes.of
    smaller = staticmethod(lambda *sizes: dataclasses.replace(of(*sizes), room=room))
    monkeypatch.setattr(RankSizes, "of", smaller)


def set_programs(monkeypatch, programs: int) -> None:
    """Give the filter so many programs at most."""
    limits = filtering.filter_limits
    monkeypatch.setattr(filtering, "filter_limits", lambda *of: (limits(*of)[0], programs))


def set_registers(monkeypatch, sizes: tuple[int, ...]) -> None:
    """Longer lists are read again and again, 64 candidates at a time."""
    of_section = tuple(max(size // 2, 64) for size in sizes)
    monkeypatch.setattr(taking, "IN_REGISTERS", sizes)
    monkeypatch.setattr(taking, "SECTION_IN_REGISTERS", of_section)
    monkeypatch.setattr(taking, "chunk", lambda k_max: 64)
