"""Samples of live requests: what is kept, of whom, within which bounds, and never at a cost."""

from __future__ import annotations

import logging
import stat
from types import SimpleNamespace

import pytest
import torch

from hata_sglang.config import HataConfig
from hata_sglang.config.traffic import Traffic
from hata_sglang.decoding import LayerCache
from hata_sglang.errors import Refusal
from hata_sglang.metrics import Metrics
from hata_sglang.seams import cpu_preview
from hata_sglang.seams.session import Session
from hata_sglang.shape import ModelShape
from hata_sglang.training.traffic import TrafficFolder

HQ, HKV, DIM, SCALE = 4, 2, 16, 0.25
LAYERS = (1, 3)
#: Rows of a batch of prompts: cached prefix, tokens of this chunk, tokens of the prompt.
FITS, SHORT, LONG, CHUNK, CACHED = (
    (50, 200, 250),
    (0, 60, 60),
    (0, 900, 900),
    (0, 200, 500),
    ((240, 10, 250)),
)


class Prefill:
    """Batches of prompts through four layers, as SGLang runs them."""

    def __init__(self, folder, monkeypatch, **settings):
        cpu_preview.enable()
        from hata_sglang.seams.traffic import Sampler

        settings = {"share": 1.0, "requests": 2, "min": 100, "max": 600, **settings}
        self.settings = Traffic(folder=str(folder), **settings)
        self.folder = TrafficFolder(folder)
        self.draws = []
        self.sampler = Sampler(self.settings, self.folder, LAYERS, self.draw)

    def draw(self):
        self.draws.append(0.5)
        return 0.5

    def run(self, *rows, wait=True):
        """Prefill a batch; queries by layer, caches by layer, and slots by row."""
        prefixes, lengths, totals = zip(*rows, strict=True)
        slots = (torch.randperm(1999) + 1)[: sum(p + n for p, n, _ in rows)]
        slots = slots.split([p + n for p, n, _ in rows])
        table = torch.zeros(10, 1000, dtype=torch.int32)
        for row, own in enumerate(slots):
            table[row + 3, : len(own)] = own.int()
        batch = SimpleNamespace(
            extend_prefix_lens_cpu=[*prefixes, 0],  # padded for a graph, as `q` is
            extend_seq_lens_cpu=[*lengths, 300],
            orig_seq_lens=torch.tensor(totals),
            req_pool_indices=torch.arange(3, 3 + len(rows)),
        )
        queries, caches = {}, {}
        for number in range(4):
            queries[number] = torch.randn(sum(lengths) + 300, HQ * DIM).bfloat16()
            caches[number] = LayerCache(*torch.randn(2, 2000, HKV, DIM).bfloat16())
            layer = SimpleNamespace(layer_id=number, tp_q_head_num=HQ, head_dim=DIM, scaling=SCALE)
            pool = [tensor.clone() for tensor in caches[number][:2]]
            self.sampler.take(queries[number], layer, batch, table, LayerCache(*pool))
            for tensor in pool:
                tensor.zero_()  # what comes later may write to the same slots
        if wait and self.sampler._last is not None:
            self.sampler._last.result(timeout=10)
        return queries, caches, slots


@pytest.fixture
def prefill(tmp_path, monkeypatch):
    return Prefill(tmp_path / "traffic", monkeypatch)


@pytest.mark.parametrize("row", range(3))
def test_a_prompt_of_a_batch_is_kept_whole(prefill, row):
    """K and V by the slots of all its tokens, cached ones too; queries of this chunk's half."""
    rows = [SHORT, LONG]
    rows.insert(row, FITS)
    queries, caches, slots = prefill.run(*rows)
    (request,) = prefill.folder.requests()
    assert prefill.folder.layers(request) == list(LAYERS)
    assert prefill.folder.tokens(request) == 250
    start = sum(length for _, length, _ in rows[:row])
    for layer in LAYERS:
        found = prefill.folder.read(request, layer)
        assert torch.equal(found.k, caches[layer].keys[slots[row]].float())
        assert torch.equal(found.v, caches[layer].values[slots[row]].float())
        positions = found.positions
        assert positions.tolist() == sorted({*positions.tolist()})
        assert len(positions) == 125
        assert positions.min() >= 125
        assert positions.max() == 249
        places = start + positions - 50
        assert torch.equal(found.q, queries[layer][places].view(-1, HQ, DIM).float())
        assert found.scale == SCALE
    assert prefill.folder.read(request, 1).positions.equal(
        prefill.folder.read(request, 3).positions
    )


@pytest.mark.parametrize("row", [SHORT, LONG, CHUNK, CACHED])
def test_what_is_not_kept(prefill, row):
    """Too short, too long, not the last chunk, hardly anything of it computed."""
    prefill.run(row)
    assert prefill.folder.requests() == []
    assert len(prefill.draws) == (row is CHUNK)  # a number on the device is read for those alone


def test_queries_are_those_that_the_chunk_computes(prefill):
    queries, _, _ = prefill.run((200, 50, 250))
    (request,) = prefill.folder.requests()
    found = prefill.folder.read(request, 3)
    assert found.positions.tolist() == list(range(200, 250))
    assert torch.equal(found.q, queries[3][:50].view(-1, HQ, DIM).float())


def test_a_share_of_prompts_is_kept(tmp_path, monkeypatch):
    rare = Prefill(tmp_path, monkeypatch, share=0.4)
    rare.run(FITS, FITS)
    assert len(rare.draws) == 2
    assert rare.folder.requests() == []


def test_the_oldest_goes_and_only_the_owner_reads(prefill):
    seen = []
    for _ in range(4):
        prefill.run(FITS)
        seen.append(prefill.folder.requests()[-1])
    assert prefill.folder.requests() == seen[-2:]
    for path in [prefill.folder.folder, *prefill.folder.folder.rglob("*")]:
        mode = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == mode, path


def test_a_request_is_whole_or_absent(prefill):
    (prefill.folder.folder / ".part-1").mkdir(parents=True)  # of a server that was killed
    prefill.run(FITS, wait=False)
    prefill.sampler._last.result(timeout=10)
    (request,) = prefill.folder.folder.iterdir()
    assert request.name.startswith("request-")
    write = prefill.folder.write

    def fail(part, layer, capture):
        if layer == 3:
            raise OSError("no space left on device")
        write(part, layer, capture)

    prefill.folder.write = fail
    prefill.run(FITS)
    assert list(prefill.folder.folder.iterdir()) == [request]


def test_disk_errors_are_said_once(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    prefill = Prefill(tmp_path / "file" / "traffic", monkeypatch)
    with caplog.at_level(logging.WARNING):
        prefill.run(FITS)
        prefill.run(FITS)
    assert [r.message for r in caplog.records if "traffic" in r.message] == [
        f"hata: traffic: a sample could not be kept (said once): [Errno 20] Not a directory: "
        f"'{tmp_path / 'file' / 'traffic'}'"
    ]


def test_one_sample_at_a_time(prefill):
    """A disk that is slower than prompts come does not fill the host's memory."""
    import threading

    gate, write = threading.Event(), prefill.folder.write
    prefill.folder.write = lambda *given: (gate.wait(10), write(*given))
    prefill.run(FITS, wait=False)
    prefill.run(FITS, wait=False)
    gate.set()
    prefill.sampler._last.result(timeout=10)
    assert len(prefill.folder.requests()) == 1


def test_links_outlive_what_the_server_drops(prefill):
    prefill.run(FITS)
    with prefill.folder.snapshot() as kept:
        prefill.run(FITS)
        prefill.run(FITS)
        layers, (request,) = kept.alike()
        assert request.name not in [own.name for own in prefill.folder.requests()]
        assert kept.read(request, layers[0]).k.shape == (250, HKV, DIM)
    assert all(path.name.startswith("request-") for path in prefill.folder.folder.iterdir())


@pytest.mark.parametrize("own_prefill", [False, True])
def test_a_server_keeps_what_its_yaml_asks_for(tmp_path, monkeypatch, own_prefill):
    cpu_preview.enable()
    from hata_sglang.seams import traffic

    config = HataConfig.parse(
        {"method": "hata", "budget": 100, "weights": "x", "traffic": {"folder": str(tmp_path)}}
    )
    shape = ModelShape(num_layers=4, num_heads=HQ, num_kv_heads=HKV, head_dim=DIM, context_len=512)
    session = Session(config, shape, config.resolve(4, 512), {})
    monkeypatch.setattr(traffic.Session, "of_rank", lambda runner: session)
    monkeypatch.setattr(traffic, "traffic_folder", lambda *_: tmp_path / "model")
    monkeypatch.setattr(traffic, "METRICS", metrics := Metrics())
    # SGLang's HybridAttnBackend has no method of hata's: prefill is another backend's.
    backend = SimpleNamespace(**({} if own_prefill else {"hata_traffic": None}))
    runner = SimpleNamespace(attn_backend=backend, model_config=None)
    if own_prefill:
        with pytest.raises(Refusal, match="traffic: expected none where prefill and decoding"):
            traffic.keep_traffic(runner)
        return
    metrics.serve(session.facts(), {2: torch.zeros(4, dtype=torch.int64)}, (2,))
    traffic.keep_traffic(runner)
    assert list(backend.hata_traffic.layers) == [2, 3]
    assert backend.hata_traffic.folder.folder == tmp_path / "model"
    assert metrics.snapshot()["traffic"] == str(tmp_path / "model")
