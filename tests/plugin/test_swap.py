"""Other weights in place of those that serve: everything is that of a fresh start, or as it was."""

from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace

import pytest
import torch
from decoder_cases import LAYER, METHODS, SCALE, SLOTS, Step

from hata_kernels.attend import RATIOS
from hata_sglang.config import HataConfig
from hata_sglang.decoding import CodeBook, CpuDecoder, GpuDecoder, LayerCache, ValueSums
from hata_sglang.errors import Refusal
from hata_sglang.metrics import Metrics
from hata_sglang.seams import cpu_preview
from hata_sglang.seams.session import Session
from hata_sglang.shape import ModelShape
from hata_sglang.weights import save_weights
from hata_sglang.weights.auto import ServedModel
from hata_sglang.weights.encoders import load_encoders
from test_weights import CONFIG, make_set

TRAINED = [name for name, (_, tensors, _) in METHODS.items() if tensors and name != "random"]
SHAPE = ModelShape(num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, context_len=512)


def alike(encoder, seed: int):
    """An encoder of the same kind with other numbers."""
    generator = torch.Generator().manual_seed(seed)
    signs = {"scale_step": 1, "distance_bias": -1}
    tensors = {}
    for name, tensor in encoder.tensors().items():
        numbers = torch.randn(tensor.shape, generator=generator)
        tensors[name] = signs[name] * numbers.abs() if name in signs else numbers
    sizes = {"num_kv_heads": encoder.num_kv_heads, "group": encoder.group}
    sizes["head_dim"] = encoder.head_dim
    return type(encoder).from_tensors(tensors, **sizes, **encoder.options())


def make_book(step: Step, encoder, device="cpu", dtype=torch.float32) -> CodeBook:
    book = CodeBook({LAYER: encoder}, [LAYER], slots=SLOTS, device=device, dtype=dtype)
    book.encode(LAYER, torch.arange(SLOTS, device=device), step.k)
    return book


def decode(step: Step, book: CodeBook, decoder) -> torch.Tensor:
    decoder.prepare(step.batch, graph=False)
    cache = LayerCache(step.k, step.v, book.codes[LAYER], book.scales.get(LAYER))
    return decoder.decode(step.plan, step.q, cache).clone()


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
@pytest.mark.parametrize("name", TRAINED)
def test_a_decoder_goes_on_as_one_that_started_with_the_new_weights(name, kind):
    def make_decoder(book):
        given = ([step.plan], {LAYER: SCALE}, book.encoders)
        if kind == "cpu":
            return CpuDecoder(*given)
        shape = ModelShape(6, 2, 64, num_layers=1, context_len=256)
        return GpuDecoder(*given, shape, device=torch.device("cpu"))

    step = Step(name, "fixed")
    book, new = make_book(step, alike(step.encoder, 1)), alike(step.encoder, 2)
    decoder = make_decoder(book)
    before = decode(step, book, decoder)
    held = {n: tensor.data_ptr() for n, tensor in book.encoders[LAYER]._tensors.items()}
    tally = book.tallies[LAYER].clone()

    book.replace(LAYER, new, step.k)
    decoder.forget()

    fresh = make_book(step, alike(step.encoder, 2))
    assert torch.equal(book.codes[LAYER], fresh.codes[LAYER])
    for layer, scales in fresh.scales.items():
        assert torch.equal(book.scales[layer], scales)
    after = decode(step, book, decoder)
    assert torch.equal(after, decode(step, fresh, make_decoder(fresh)))
    assert not torch.equal(after, before)
    # Where graphs look for them; and no key was counted twice.
    assert held == {n: t.data_ptr() for n, t in book.encoders[LAYER]._tensors.items()}
    assert torch.equal(book.tallies[LAYER], tally)


@pytest.mark.gpu
@pytest.mark.parametrize("name", TRAINED)
def test_a_captured_step_reads_the_new_weights(name):
    step = Step(name, "fixed", "cuda", torch.bfloat16)
    first, second = (alike(step.encoder.to("cpu", torch.float32), seed) for seed in (1, 2))
    book, fresh = (make_book(step, encoder, "cuda", torch.bfloat16) for encoder in (first, second))
    shape = ModelShape(6, 2, 64, num_layers=1, context_len=256)
    outs = []
    for own in (book, fresh):
        given = ([step.plan], {LAYER: SCALE}, own.encoders, shape)
        decoder = GpuDecoder(*given, device=torch.device("cuda"))
        decoder.allocate_static(len(step.rows))
        decoder.prepare(step.batch, graph=True)
        cache = LayerCache(step.k, step.v, own.codes[LAYER], own.scales.get(LAYER))
        decoder.decode(step.plan, step.q, cache)  # compiles before the capture
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            out = decoder.decode(step.plan, step.q, cache)
        captured.replay()
        if own is book:
            before = out.clone()
            book.replace(LAYER, second, step.k)
            captured.replay()
            assert not torch.equal(out, before)
        outs.append(out.clone())
    assert torch.equal(book.codes[LAYER], fresh.codes[LAYER])
    assert torch.equal(*outs)


class Served:
    """What a scheduler has of its model, with a set of `test_weights` in two layers."""

    def __init__(self, folder, monkeypatch, settings=None):
        cpu_preview.enable()
        from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

        from hata_sglang.seams import swap
        from hata_sglang.seams.pool import attach_codes

        self.swap_module, self.metrics = swap, Metrics()
        monkeypatch.setattr(swap, "METRICS", self.metrics)
        monkeypatch.setattr(swap.versions, "part_here", lambda *_: (range(2), range(2)))
        settings = settings or {"method": "hata", "weights": str(folder)}
        settings |= {"budget": 40, "sink": 2, "recent": 2, "dense_layers": []}
        config = HataConfig.parse(settings)
        loaded = load_encoders(config.resolve(2, 512), SHAPE, ServedModel(CONFIG))
        session = Session(config, SHAPE, loaded.plans, loaded.encoders, loaded.left_out)
        sizes = {"head_num": 2, "head_dim": 16, "layer_num": 2, "page_size": 1}
        self.pool = MHATokenToKVPool(
            60, dtype=torch.float32, device="cpu", enable_memory_saver=False, **sizes
        )
        attach_codes(self.pool, session)
        for layer in range(2):
            keys = torch.randn(61, 2, 16)
            slots = torch.arange(61)
            self.pool.set_kv_buffer(SimpleNamespace(layer_id=layer), slots, keys, keys)
        book = self.pool.hata_codes
        self.metrics.serve(session.facts(), book.tallies, tuple(book.encoders))
        self.sums = ValueSums(loaded.left_out, 4, SHAPE, "cpu") if loaded.left_out else None
        scales = {0: 1.0, 1: 1.0}
        decoder = CpuDecoder(loaded.plans, scales, book.encoders, value_sums=self.sums)
        self.runner = SimpleNamespace(
            # Of a class whose instances can be kept weakly.
            model_config=type(
                "Config", (), {"hf_config": CONFIG, "model_path": "", "revision": None}
            )(),
            token_to_kv_pool=self.pool,
            attn_backend=SimpleNamespace(hata_decoder=decoder),
        )
        session.keep(self.runner.model_config)

    def swap(self, ref):
        return self.swap_module.swap(self.runner, str(ref))

    def state(self):
        """Everything that a swap may change."""
        book = self.pool.hata_codes
        held = [*book, *(t for e in book.encoders.values() for t in e.tensors().values())]
        held += [] if self.sums is None else self.sums.weights.values()
        return [t.clone() for t in held], self.metrics.snapshot()


def make_folder(path, name="hata", seed=0, change=None, mean=False):
    """A set of `test_weights` of other numbers, or of what `change` makes of card and encoders.

    With weights of the mean of the values left out where `mean` says so.
    """
    card, encoders = make_set(name)
    encoders = {layer: alike(encoder, seed + layer) for layer, encoder in encoders.items()}
    if change is not None:
        card, encoders = change(card, encoders)
    left_out = {}
    if mean:
        dice = torch.Generator().manual_seed(seed)
        left_out = {n: torch.rand(SHAPE.num_heads, RATIOS, generator=dice) for n in encoders}
        for weights in left_out.values():
            weights[:, 0] = 0  # where nothing is left out
        card = card.model_copy(update={"left_out": True})
    save_weights(path, card, encoders, left_out=left_out)
    return path


@pytest.fixture
def served(tmp_path, monkeypatch):
    return Served(make_folder(tmp_path / "first"), monkeypatch)


def test_a_set_takes_the_place_of_another_one_and_back(served, tmp_path):
    first = served.state()
    second = make_folder(tmp_path / "second", seed=10)
    assert "in 2 layers" in served.swap(second)
    tensors, facts = served.state()
    assert not any(torch.equal(a, b) for a, b in zip(tensors, first[0], strict=True))
    assert facts == first[1] | {"weights": str(second)}
    served.swap(tmp_path / "first")
    tensors, facts = served.state()
    assert all(torch.equal(a, b) for a, b in zip(tensors, first[0], strict=True))
    assert facts == first[1]


def one_layer(card, encoders):
    masses = {"held_out": ()}
    return card.model_copy(update={"layers": (0,), **masses}), {0: encoders[0]}


def other_bits(card, encoders):
    shapes = {"weight": (2, 16, 64)}
    card = card.model_copy(update={"bits": 64, "shapes": shapes})
    sizes = {"num_kv_heads": 2, "group": 2, "head_dim": 16}
    return card, {
        n: type(e).from_tensors({"weight": torch.randn(2, 16, 64)}, **sizes)
        for n, e in encoders.items()
    }


def other_model(card, encoders):
    fingerprint = card.fingerprint.model_copy(update={"vocab_size": 300})
    return card.model_copy(update={"fingerprint": fingerprint}), encoders


HOSTILE = {
    "a missing layer": ("hata", one_layer, "weights of layers 1: expected trained weights"),
    "other bits": ("hata", other_bits, "bits of layers 0-1: expected 64 .*, found 32"),
    "another method": ("hashattention", None, "method of layers 0-1: expected hashattention"),
    "other tensors": (
        "hata with scales",
        None,
        "layer 0: expected the encoder .*scale_bits: .* found 8",
    ),
    "another model": ("hata", other_model, "vocab_size: expected 300"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_set_that_does_not_fit_changes_nothing(served, tmp_path, case):
    name, change, message = HOSTILE[case]
    refused(served, make_folder(tmp_path / "second", name, 10, change), message)


def test_what_the_mean_weighs_goes_along(tmp_path, monkeypatch):
    first = make_folder(tmp_path / "first", mean=True)
    served = Served(first, monkeypatch)
    held = {layer: own.data_ptr() for layer, own in served.sums.weights.items()}
    second = make_folder(tmp_path / "second", seed=10, mean=True)
    served.swap(second)
    fresh = Served(second, monkeypatch)
    for layer, own in served.sums.weights.items():
        assert torch.equal(own, fresh.sums.weights[layer])
        assert own.data_ptr() == held[layer]  # where graphs look for them
    plain = make_folder(tmp_path / "plain", seed=20)
    refused(served, plain, "left_out of layers 0-1: expected auto or none, .*found mean")
    served = Served(plain, monkeypatch)
    assert served.swap(first).endswith(
        "mean of the values left out, which this server began without"
    )
    assert served.metrics.snapshot()["left_out_layers"] == 0


def test_a_damaged_set_changes_nothing(served, tmp_path):
    folder = make_folder(tmp_path / "second", seed=10)
    refused(served, tmp_path / "none", "weights: expected a folder of hash weights")
    content = bytearray((folder / "hash.safetensors").read_bytes())
    content[-4:] = b"\x00\x00\xc0\x7f"  # NaN
    (folder / "hash.safetensors").write_bytes(content)
    refused(served, folder, "expected SHA-256")
    card, digest = folder / "card.json", hashlib.sha256(content).hexdigest()
    card.write_text(json.dumps(json.loads(card.read_text()) | {"sha256": digest}))
    refused(served, folder, "expected finite numbers, found 1 NaN")


def test_only_a_server_of_one_set_swaps_it(served, tmp_path, monkeypatch):
    first, second = tmp_path / "first", make_folder(tmp_path / "second", seed=10)
    settings = {"method": "hata", "weights": str(first), "layers": {1: {"weights": str(second)}}}
    two = Served(first, monkeypatch, settings)
    refused(two, second, "weights to swap: expected one set in all layers.*first, .*second")
    mixed = {
        "method": "hata",
        "weights": str(first),
        "layers": {1: {"method": "random", "bits": 32}},
    }
    one = Served(first, monkeypatch, mixed)
    assert "in 1 layers" in one.swap(second)


def refused(served, ref, message):
    before, facts = served.state()
    with pytest.raises(Refusal, match=message):
        served.swap(ref)
    after, now = served.state()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert facts == now
