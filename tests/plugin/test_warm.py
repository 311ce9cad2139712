"""What prompts need is compiled at start: every kind of encoder once for every kind of prompt."""

from __future__ import annotations

import torch

from hata_kernels.encoders import AsymmetricEncoder, LinearEncoder
from hata_sglang.decoding import CodeBook
from hata_sglang.decoding.warm import PROMPTS, warm_encoders

SHAPE = {"num_kv_heads": 2, "group": 3, "head_dim": 64}


def make(bits: int, scale_bits: int = 0):
    tensors = {"weight": torch.randn(2, 64, bits)}
    if scale_bits:
        tensors["scale_step"] = torch.ones(2)
    return LinearEncoder.from_tensors(tensors, **SHAPE, scale_bits=scale_bits)


def make_book(encoders) -> CodeBook:
    return CodeBook(encoders, encoders, slots=20, device="cpu", dtype=torch.float32)


def test_every_kind_once(monkeypatch, capsys) -> None:
    encoders = {2: make(64), 3: make(64), 4: make(128), 5: make(64, 8), 6: make(128)}
    book = make_book(encoders)
    for codes in book.codes.values():
        codes.random_(-(2**31), 2**31)
    before = {layer: of.clone() for layer, of in book.codes.items()}
    calls = []
    encode = type(encoders[2]).encode_keys

    def record(self, k, **where):
        calls.append((self.bits, self.scale_bits, k.shape[0], k.dtype, where["slots"].dtype))
        encode(self, k, **where)

    monkeypatch.setattr(type(encoders[2]), "encode_keys", record)
    warm_encoders(book, torch.float32)
    assert calls == [
        (*kind, tokens, torch.float32, torch.int64)
        for kind in ((64, 0), (128, 0), (64, 8))
        for tokens in PROMPTS
    ]
    for layer, of in book.codes.items():
        assert torch.equal(of[1:], before[layer][1:])  # slot 0 is reserved
    assert "hata: compiling for prompts" in capsys.readouterr().err


def test_stages_are_kinds(monkeypatch) -> None:
    """Codes of as many bits, of one set with two stages and one without: kernels of their own."""
    tensors = {
        "key_weight": torch.randn(2, 64, 64),
        "key_bias": torch.randn(2, 64),
        "query_weight": torch.randn(2, 192, 64),
        "query_bias": torch.randn(2, 64),
    }
    two = tensors | {"residual_weight": torch.randn(2, 32, 32)}
    encoders = {
        1: AsymmetricEncoder.from_tensors(tensors, **SHAPE),
        2: AsymmetricEncoder.from_tensors(two, **SHAPE, stages=2),
        3: AsymmetricEncoder.from_tensors(tensors, **SHAPE),
    }
    book, stages = make_book(encoders), []
    monkeypatch.setattr(
        type(encoders[1]), "encode_keys", lambda self, *_, **__: stages.append(self.stages)
    )
    warm_encoders(book, torch.float32)
    assert stages == [1] * len(PROMPTS) + [2] * len(PROMPTS)


def test_no_codes_nothing_to_compile() -> None:
    warm_encoders(make_book({}), torch.bfloat16)
