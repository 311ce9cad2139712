"""The code pool on top of SGLang's real KV pool: whatever happens to a key happens to its code."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from hata_kernels.encode import encode_naive
from hata_sglang.config import HataConfig
from hata_sglang.seams.session import ModelShape, Session

SLOTS, HEADS, DIM, BITS = 64, 2, 16, 64


@pytest.fixture(scope="module")
def session():
    config = HataConfig.parse(
        {"method": "random", "bits": BITS, "budget": 128, "dense_layers": [0]}
    )
    shape = ModelShape(3, 4, HEADS, DIM, 512)
    plans = config.resolve(3, 512)
    weights = {p.layer: torch.randn(HEADS, DIM, BITS) for p in plans if not p.dense}
    return Session(config, shape, plans, weights)


@pytest.fixture
def pool(session):
    from hata_sglang.seams import cpu_preview

    cpu_preview.enable()
    from hata_sglang.seams.pool import make_pool_class

    return make_pool_class(session)(
        SLOTS,
        page_size=1,
        dtype=torch.float32,
        head_num=HEADS,
        head_dim=DIM,
        layer_num=3,
        device="cpu",
        enable_memory_saver=False,
    )


def write(pool, layer: int, slots: torch.Tensor) -> torch.Tensor:
    keys = torch.randn(len(slots), HEADS, DIM)
    pool.set_kv_buffer(SimpleNamespace(layer_id=layer), slots, keys, torch.randn_like(keys))
    return keys


def codes_of(session, layer, keys):
    return encode_naive(keys, session.weights[layer])


def test_codes_are_written_with_the_keys(pool, session):
    slots = torch.tensor([5, 3, 60, 11])
    keys = write(pool, 1, slots)
    assert torch.equal(pool.codes[1][slots], codes_of(session, 1, keys))
    untouched = torch.ones(SLOTS + 1, dtype=torch.bool)
    untouched[slots] = False
    assert pool.codes[1][untouched].eq(0).all()
    assert pool.codes[2].eq(0).all()


def test_dense_layers_keep_no_codes(pool):
    write(pool, 0, torch.tensor([1, 2]))
    assert set(pool.codes) == {1, 2}


def test_codes_are_in_the_size_that_sglang_reports(pool):
    k_bytes, v_bytes = pool.get_kv_size_bytes()
    assert k_bytes - v_bytes == 2 * (SLOTS + 1) * HEADS * BITS // 8


def test_each_token_is_counted_once(pool):
    from hata_sglang.metrics import COUNTERS

    before = COUNTERS.tokens_encoded
    for layer in range(3):
        write(pool, layer, torch.tensor([7, 8, 9]))
    assert COUNTERS.tokens_encoded - before == 3


def test_moved_keys_take_their_codes_along(pool, session):
    source, target = torch.tensor([4, 9]), torch.tensor([20, 21])
    keys = {layer: write(pool, layer, source) for layer in range(3)}
    pool.use_native_move_kv_cache = True  # the other way is a Triton kernel
    pool.move_kv_cache(target, source)
    for layer in (1, 2):
        assert torch.equal(pool.codes[layer][target], codes_of(session, layer, keys[layer]))


def test_keys_from_a_cpu_copy_are_encoded_again(pool, session):
    source, target = torch.tensor([4, 9, 2]), torch.tensor([30, 31, 32])
    keys = {layer: write(pool, layer, source) for layer in range(3)}
    saved = pool.get_cpu_copy(source)
    pool.load_cpu_copy(saved, target)
    for layer in (1, 2):
        assert torch.equal(pool.codes[layer][target], codes_of(session, layer, keys[layer]))


def test_codes_count_in_sglangs_bytes_per_token(session, monkeypatch):
    """2 coded layers x 2 KV heads x 64 bits: 32 bytes on top of what SGLang computed."""
    from hata_sglang.seams import hooks

    monkeypatch.setattr(hooks.Session, "open", lambda model_config: session)
    target = SimpleNamespace(is_draft_worker=False, model_config=None)
    assert hooks._cell_size(1000, None, target, 3) == 1032
    draft = SimpleNamespace(is_draft_worker=True, model_config=None)
    assert hooks._cell_size(1000, None, draft, 3) is None  # keep SGLang's number
