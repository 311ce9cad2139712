"""`attend: flashinfer`: which plans are made when, and that the right selection is attended."""

from __future__ import annotations

from types import SimpleNamespace
from typing import ClassVar

import decoder_cases as cases
import pytest
import torch

from hata_kernels.attend import attend_naive
from hata_kernels.tally import SIZE
from hata_sglang.decoding import Batch, GpuDecoder, planned
from hata_sglang.decoding.planned import PlannedAttention, choose_attend
from hata_sglang.shape import ModelShape

SHAPE = ModelShape(cases.HQ, cases.HKV, cases.DIM, num_layers=8, context_len=256)


class SparseDecode:
    """Stands in for FlashInfer's wrapper: plans are kept, attention is the reference's."""

    made: ClassVar[list] = []

    def __init__(self, **options):
        self.options, self.plans = options, []
        self.made.append(self)

    def plan(self, counts):
        if self.plans and torch.equal(counts, self.plans[-1]):
            return False
        bs, most = len(counts), self.options["max_batch"]
        assert bs == most if self.options["use_cuda_graph"] else bs <= most
        assert counts.dtype == torch.int32
        assert counts.min() >= 1
        assert counts.max() <= self.options["k_max"]
        self.plans.append(counts.clone())
        return True

    def run(self, q, k_cache, v_cache, slots, *, seq_lens, tally):
        assert slots.shape[2] >= self.plans[-1].max()
        tally += len(q)
        return attend_naive(q, k_cache, v_cache, slots, self.plans[-1], scale=self.options["scale"])


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    SparseDecode.made = []
    monkeypatch.setattr(planned, "SparseDecode", SparseDecode)
    properties = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)


def make_decoder(step, device="cpu", dtype=torch.float32):
    where = {"device": torch.device(device)}
    plans, scales = [step.plan], {cases.LAYER: cases.SCALE}
    return GpuDecoder(
        plans,
        scales,
        step.encoders,
        SHAPE,
        **where,
        tallies={cases.LAYER: torch.zeros(SIZE, dtype=torch.int64, device=device)},
        planned=PlannedAttention(plans, scales, SHAPE, dtype=dtype, **where),
    )


def longer(step, more: int):
    """The same rows, all with a context `more` tokens longer (of any slots)."""
    batch = step.batch
    lengths = batch.seq_lens_cpu + more
    return Batch(batch.req_to_token, batch.rows, lengths.clone(), lengths)


@pytest.mark.parametrize("budget", cases.BUDGETS)
@pytest.mark.parametrize("name", cases.METHODS)
def test_it_attends_over_what_the_method_chooses(name, budget):
    step = cases.Step(name, budget)
    decoder = make_decoder(step)
    eager = step.decode(decoder, graph=False)
    torch.testing.assert_close(eager, step.expected(), atol=1e-5, rtol=1e-4)
    decoder.allocate_static(len(cases.LENGTHS) + 3)
    torch.testing.assert_close(step.decode(decoder, graph=True), eager)
    assert decoder.tallies[cases.LAYER].gt(0).all()  # the wrapper counts


def test_a_fixed_budget_plans_once_where_contexts_are_longer():
    step = cases.Step("random", "fixed")
    decoder = make_decoder(step)
    decoder.allocate_static(9)
    long = longer(step, 40)  # every context has 40 tokens or more: the budget
    for more in range(3):
        step.batch = longer(step, 0) if more == 0 else long
        decoder.prepare(step.batch, graph=True)
    (wrapper,) = SparseDecode.made
    assert [counts.tolist() for counts in wrapper.plans] == [
        [min(length, 40) for length in cases.LENGTHS],
        [40] * len(cases.LENGTHS),
    ]


def test_captured_batches_have_wrappers_of_their_own_and_share_scratch():
    step = cases.Step("random", "ratio")
    decoder = make_decoder(step)
    decoder.allocate_static(8)
    whole = step.batch
    for bs in (2, 5, 2):
        parts = (whole.rows, whole.seq_lens, whole.seq_lens_cpu)
        decoder.prepare(Batch(whole.req_to_token, *(part[:bs] for part in parts)), graph=True)
    assert [wrapper.options["max_batch"] for wrapper in SparseDecode.made] == [2, 5]
    first, second = (wrapper.options for wrapper in SparseDecode.made)
    assert first["workspace"] is second["workspace"]
    assert first["pages"] is second["pages"]
    held = first["workspace"].nbytes + first["pages"].nbytes
    counted = planned.planned_bytes([step.plan], SHAPE, 8, torch.device("cpu"))
    assert held == counted


def test_eager_steps_of_any_size_take_few_wrappers():
    step = cases.Step("random", "fixed")
    decoder, whole = make_decoder(step), step.batch
    for bs in (1, 2, 3, 4, 5, 6):
        parts = (whole.rows, whole.seq_lens, whole.seq_lens_cpu)
        decoder.prepare(Batch(whole.req_to_token, *(part[:bs] for part in parts)), graph=False)
    assert [wrapper.options["max_batch"] for wrapper in SparseDecode.made] == [1, 2, 4, 8]
    decoder.prepare(longer(step, 1), graph=False)
    assert len(SparseDecode.made) == 4


def test_eager_steps_hold_what_the_largest_of_them_needs():
    step = cases.Step("random", "fixed")
    decoder, whole = make_decoder(step), step.batch
    for bs in (1, 3, 6, 2):
        parts = (whole.rows, whole.seq_lens, whole.seq_lens_cpu)
        decoder.prepare(Batch(whole.req_to_token, *(part[:bs] for part in parts)), graph=False)
    held = {
        tensor.data_ptr(): tensor.nbytes
        for wrapper in decoder.planned._eager.values()
        for tensor in (wrapper.options["workspace"], wrapper.options["pages"])
    }
    counted = planned.planned_bytes([step.plan], SHAPE, 6, torch.device("cpu"))
    assert sum(held.values()) == counted
    assert list(decoder.planned._eager.values()) == SparseDecode.made[-1:]


@pytest.mark.parametrize(
    ("asked", "name", "shape", "chosen"),
    [
        ("flashinfer", "any GPU", (32, 8, 128), "flashinfer"),
        ("triton", "any GPU", (32, 8, 128), "triton"),
        ("auto", "a GPU that nobody measured", (32, 8, 128), "triton"),
        ("auto", "measured", (16, 8, 128), "flashinfer"),
        ("auto", "measured", (32, 8, 128), "triton"),
    ],
)
def test_who_attends(monkeypatch, asked, name, shape, chosen):
    monkeypatch.setattr(planned, "FASTER", {("measured", 2, 128): "flashinfer"})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    model = ModelShape(*shape, num_layers=1, context_len=1)
    assert choose_attend(asked, model, torch.device("cuda")) == chosen
