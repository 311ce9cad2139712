"""The code pool on top of SGLang's real KV pool: whatever happens to a key happens to its code."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from hata_kernels.bits import pack_bits
from hata_kernels.encoders import AsymmetricEncoder, LinearEncoder
from hata_sglang.config import HataConfig
from hata_sglang.seams.session import Session
from hata_sglang.shape import ModelShape

SLOTS, HEADS, DIM, BITS = 64, 2, 16, 64
SCALES = {"codes alone": 0, "8-bit scales": 8, "16-bit scales": 16}


def make_encoders(kind: str):
    """Encoders of layers 1 and 2, of two methods, with a scale of this many bits or none."""
    generator = torch.Generator().manual_seed(3)

    def rand(*shape):
        return torch.randn(shape, generator=generator)

    shape = {"num_kv_heads": HEADS, "group": 2, "head_dim": DIM}
    step = {"scale_step": torch.full((HEADS,), 0.125)} if SCALES[kind] else {}
    options = {"scale_bits": SCALES[kind]}
    asymmetric = {
        "key_weight": rand(HEADS, DIM, BITS),
        "key_bias": rand(HEADS, BITS),
        "query_weight": rand(HEADS, 2 * DIM, BITS),
        "query_bias": rand(HEADS, BITS),
    }
    return {
        1: LinearEncoder.from_tensors(
            {"weight": rand(HEADS, DIM, BITS), **step}, **shape, **options
        ),
        2: AsymmetricEncoder.from_tensors({**asymmetric, **step}, **shape, **options),
    }


@pytest.fixture(scope="module", params=SCALES)
def session(request):
    config = HataConfig.parse(
        {"method": "random", "bits": BITS, "budget": 128, "dense_layers": [0]}
    )
    shape = ModelShape(4, HEADS, DIM, 3, 512)
    plans = config.resolve(3, 512)
    return Session(config, shape, plans, make_encoders(request.param))


@pytest.fixture
def pool(session):
    from hata_sglang.seams import cpu_preview

    cpu_preview.enable()
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    from hata_sglang.seams.pool import attach_codes

    made = MHATokenToKVPool(
        SLOTS,
        page_size=1,
        dtype=torch.float32,
        head_num=HEADS,
        head_dim=DIM,
        layer_num=3,
        device="cpu",
        enable_memory_saver=False,
    )
    attach_codes(made, session)
    return made


def write(pool, layer: int, slots: torch.Tensor) -> torch.Tensor:
    keys = torch.randn(len(slots), HEADS, DIM)
    pool.set_kv_buffer(SimpleNamespace(layer_id=layer), slots, keys, torch.randn_like(keys))
    return keys


def has_codes_of(pool, session, layer, slots, keys) -> bool:
    """Whether these slots hold what the layer's encoder makes of the keys, scales included."""
    encoder = session.encoders[layer]
    same = torch.equal(pool.hata_codes.codes[layer][slots], pack_bits(encoder.key_bits(keys)))
    if not encoder.scale_bits:
        assert layer not in pool.hata_codes.scales
        return same
    stored = pool.hata_codes.scales[layer][slots].int() % 2**encoder.scale_bits
    expected = encoder.key_scales(keys)
    assert expected.unique().numel() > 1, "scales that are all equal test nothing"
    return same and torch.equal(stored, expected)


def test_codes_are_written_with_the_keys(pool, session):
    slots = torch.tensor([5, 3, 60, 11])
    keys = write(pool, 1, slots)
    assert has_codes_of(pool, session, 1, slots, keys)
    untouched = torch.ones(SLOTS + 1, dtype=torch.bool)
    untouched[slots] = False
    for buffers in (pool.hata_codes.codes, pool.hata_codes.scales):
        assert all(buffer[untouched].eq(0).all() for buffer in buffers.values())
    assert pool.hata_codes.codes[2].eq(0).all()


def test_dense_layers_keep_no_codes(pool):
    write(pool, 0, torch.tensor([1, 2]))
    assert set(pool.hata_codes.codes) == set(pool.hata_codes.encoders) == {1, 2}


def test_codes_and_scales_are_in_the_size_that_sglang_reports(pool, session):
    k_bytes, v_bytes = pool.get_kv_size_bytes()
    scale_bytes = session.encoders[1].scale_bits // 8
    assert k_bytes - v_bytes == 2 * (SLOTS + 1) * HEADS * (BITS // 8 + scale_bytes)


def test_codes_and_scales_are_freed_with_the_keys(pool):
    pool._clear_buffers()
    assert not hasattr(pool, "hata_codes")


def test_tokens_are_counted_where_their_keys_are_encoded(pool):
    for layer in range(3):
        write(pool, layer, torch.tensor([7, 8, 9][layer:]))
    assert {layer: tally.tolist() for layer, tally in pool.hata_codes.tallies.items()} == {
        1: [2, 0, 0, 0],
        2: [1, 0, 0, 0],
    }


def test_moved_keys_take_their_codes_along(pool, session):
    source, target = torch.tensor([4, 9]), torch.tensor([20, 21])
    keys = {layer: write(pool, layer, source) for layer in range(3)}
    pool.use_native_move_kv_cache = True  # the other way is a Triton kernel
    pool.move_kv_cache(target, source)
    for layer in (1, 2):
        assert has_codes_of(pool, session, layer, target, keys[layer])


def test_keys_from_a_cpu_copy_are_encoded_again(pool, session):
    source, target = torch.tensor([4, 9, 2]), torch.tensor([30, 31, 32])
    keys = {layer: write(pool, layer, source) for layer in range(3)}
    saved = pool.get_cpu_copy(source)
    pool.load_cpu_copy(saved, target)
    for layer in (1, 2):
        assert has_codes_of(pool, session, layer, target, keys[layer])


def test_codes_count_in_sglangs_bytes_per_token(session, monkeypatch):
    """2 coded layers x 2 KV heads x 64 bits, and scales, on top of what SGLang computed."""
    from hata_sglang.seams import hooks

    monkeypatch.setattr(hooks.Session, "of_rank", lambda owner: session)
    target = SimpleNamespace(is_draft_worker=False, model_config=None)
    more = {0: 32, 8: 36, 16: 40}[session.encoders[1].scale_bits]
    assert hooks._cell_size(1000, None, target, 3) == 1000 + more
    draft = SimpleNamespace(is_draft_worker=True, model_config=None)
    assert hooks._cell_size(1000, None, draft, 3) is None  # keep SGLang's number
