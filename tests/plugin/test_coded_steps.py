"""Decode steps of a server with codes: SGLang's real pool, both decoders, and what is counted."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from hata_kernels.bits import pack_bits
from hata_sglang.config import HataConfig
from hata_sglang.decoding import Batch, GpuDecoder
from hata_sglang.errors import HataError
from hata_sglang.metrics import Metrics
from hata_sglang.seams import cpu_preview
from hata_sglang.seams.session import Session
from hata_sglang.shape import ModelShape
from hata_sglang.weights.auto import ServedModel
from hata_sglang.weights.encoders import load_encoders

HQ, HKV, DIM, CONTEXT, BUDGET = 4, 2, 64, 512, 40
SHAPE = ModelShape(num_layers=3, num_heads=HQ, num_kv_heads=HKV, head_dim=DIM, context_len=CONTEXT)
SCALE = DIM**-0.5
LENGTHS = (120, 30)
#: Slots of the prompts, in position order, and of the step's new tokens.
PROMPTS = [torch.arange(1, LENGTHS[0]), torch.arange(200, 199 + LENGTHS[1])]
NEWEST = torch.tensor([150, 250])


class Inner:
    """A stock backend whose answer for a layer is ones."""

    def forward_decode(self, q, k, v, layer, forward_batch, save_kv_cache=True, **kwargs):
        return torch.ones_like(q)


def make_session(recent: int) -> Session:
    settings = {"method": "random", "bits": 64, "budget": BUDGET, "sink": 4, "recent": recent}
    config = HataConfig.parse({**settings, "dense_layers": [0]})
    loaded = load_encoders(config.resolve(3, CONTEXT), SHAPE, ServedModel(None))
    return Session(config, SHAPE, loaded.plans, loaded.encoders)


class Server:
    """What a scheduler has: a pool with two prompts, and an attention backend with hata."""

    def __init__(self, decoder: str, recent: int, monkeypatch) -> None:
        cpu_preview.enable()
        from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

        from hata_sglang.seams import backend
        from hata_sglang.seams.pool import attach_codes

        self.session, self.metrics = make_session(recent), Metrics()
        monkeypatch.setattr(backend, "METRICS", self.metrics)
        monkeypatch.setattr(backend.versions, "write_loc", lambda batch: batch.out_cache_loc)
        sizes = {"head_num": HKV, "head_dim": DIM, "layer_num": 3, "page_size": 1}
        self.pool = MHATokenToKVPool(
            300, dtype=torch.float32, device="cpu", enable_memory_saver=False, **sizes
        )
        attach_codes(self.pool, self.session)
        model = torch.nn.ModuleList(backend_layer(layer) for layer in range(SHAPE.num_layers))
        runner = SimpleNamespace(
            device="cpu",
            token_to_kv_pool=self.pool,
            req_to_token_pool=None,
            model=model,
        )
        self.backend = backend.attach(Inner(), runner, self.session)
        if decoder == "gpu":
            self.backend.hata_decoder = GpuDecoder(
                self.session.sparse_plans,
                dict.fromkeys(range(3), SCALE),
                self.pool.hata_codes.encoders,
                SHAPE,
                device=torch.device("cpu"),
                tallies=self.pool.hata_codes.tallies,
            )
        self.layers = list(model)
        for layer in self.layers:
            for slots in PROMPTS:
                k, v = torch.randn(2, len(slots), HKV, DIM)
                self.pool.set_kv_buffer(layer, slots, k, v)

    def step(self, padding: int = 0) -> dict[int, tuple]:
        """One decode step over all layers; queries, keys and answers by layer."""
        rows = len(LENGTHS) + padding
        table = torch.zeros(rows, CONTEXT, dtype=torch.int32)
        for row, slots in enumerate(PROMPTS):
            table[row, : len(slots)], table[row, len(slots)] = slots.int(), NEWEST[row].int()
        lengths = torch.tensor([*LENGTHS, *[1] * padding])
        new_slots = torch.cat([NEWEST, torch.zeros(padding, dtype=NEWEST.dtype)])
        batch = Batch(table, torch.arange(rows), lengths, lengths)
        self.backend.hata_decoder.prepare(batch, graph=False)
        forward_batch = SimpleNamespace(batch_size=rows, out_cache_loc=new_slots)
        found = {}
        for layer in self.layers:
            q, (k, v) = torch.randn(rows, HQ * DIM), torch.randn(2, rows, HKV, DIM)
            out = self.backend.forward_decode(q, k, v, layer, forward_batch)
            found[layer.layer_id] = (q, k, out)
        return found


def backend_layer(layer: int):
    from sglang.srt.layers.radix_attention import RadixAttention

    return RadixAttention(HQ, DIM, SCALE, HKV, layer)


@pytest.fixture(params=["cpu", "gpu"])
def server(request, monkeypatch):
    return Server(request.param, 16, monkeypatch)


def totals(server) -> dict[str, int]:
    snapshot = server.metrics.snapshot()
    return {key: snapshot[key] for key in snapshot if key not in server.session.facts()}


#: Tokens attended in one layer of one step: the second row's budget covers its context.
ATTENDED = BUDGET + LENGTHS[1]


def test_a_step_writes_codes_and_counts_what_it_read(server):
    check_step(server)


def test_padding_of_a_captured_step_is_not_counted(monkeypatch):
    check_step(Server("gpu", 16, monkeypatch), padding=2)


def check_step(server, padding: int = 0) -> None:
    prompts = sum(map(len, PROMPTS))
    zeros = {"decode_steps": 0, "layer_steps": 0, "tokens_in_context": 0, "tokens_attended": 0}
    assert totals(server) == {**zeros, "tokens_encoded": prompts}
    found = server.step(padding)
    for layer in (1, 2):
        encoder, (q, k, out) = server.session.encoders[layer], found[layer]
        codes = pack_bits(encoder.key_bits(k[: len(NEWEST)]))
        assert torch.equal(server.pool.hata_codes.codes[layer][NEWEST], codes)
        keys, values = server.pool.get_kv_buffer(layer)
        assert torch.equal(keys[NEWEST], k[: len(NEWEST)])
        # The second row attends to its whole context: any softmax attention says the same.
        slots = torch.cat([PROMPTS[1], NEWEST[1:]])
        expected = torch.nn.functional.scaled_dot_product_attention(
            q[1].view(1, HQ, 1, DIM),
            keys[slots].transpose(0, 1)[None],
            values[slots].transpose(0, 1)[None],
            scale=SCALE,
            enable_gqa=True,
        )
        torch.testing.assert_close(out[1], expected.flatten())
    assert found[0][2].eq(1).all()  # the stock backend's
    assert totals(server) == {
        "decode_steps": 1,
        "layer_steps": 2,
        "tokens_in_context": 2 * sum(LENGTHS),
        "tokens_attended": 2 * ATTENDED,
        "tokens_encoded": prompts + len(NEWEST),
    }


def test_a_layer_that_goes_dense_is_missing_in_the_counters(server):
    server.step()
    before = totals(server)
    server.backend.hata_plans.pop(2)
    assert server.step()[2][2].eq(1).all()
    after = totals(server)
    assert after["decode_steps"] - before["decode_steps"] == 1
    assert after["layer_steps"] - before["layer_steps"] == 1
    assert after["tokens_attended"] - before["tokens_attended"] == ATTENDED
    assert after["tokens_in_context"] - before["tokens_in_context"] == sum(LENGTHS)
    # The stock backend of this test writes nothing, so layer 2 has no codes of the new keys.
    assert after["tokens_encoded"] == before["tokens_encoded"]


def test_what_a_sparse_layer_cannot_do_stops_the_step(server):
    server.step()
    layer, batch = server.layers[1], SimpleNamespace(batch_size=2, out_cache_loc=NEWEST)
    q, (k, v) = torch.randn(2, HQ * DIM), torch.randn(2, 2, HKV, DIM)
    with pytest.raises(HataError, match="layer 1: expected plain attention, found sinks"):
        server.backend.forward_decode(q, k, v, layer, batch, sinks=torch.ones(HQ))


@pytest.mark.parametrize("recent", [16, 0])
def test_who_encodes_the_new_keys_of_a_gpu(monkeypatch, recent):
    """The decoder, in the launch of the queries; where the newest key is ranked, the pool."""
    server = Server("gpu", recent, monkeypatch)
    encoded = []
    book = server.pool.hata_codes
    encode = book.encode
    monkeypatch.setattr(book, "encode", lambda *of: (encoded.append(of[0]), encode(*of)))
    found = server.step()
    assert encoded == ([] if recent else [1, 2])
    for layer in (1, 2):
        codes = pack_bits(server.session.encoders[layer].key_bits(found[layer][1]))
        assert torch.equal(server.pool.hata_codes.codes[layer][NEWEST], codes)
