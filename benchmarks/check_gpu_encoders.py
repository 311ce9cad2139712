"""Checks of encoders, scaled and exact scores and of selection by PyTorch, against the CPU.

Run by check_gpu_kernels.py with its own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from gpu_layer import CUDA, LLAMA, QWEN, RECENT, SINK, SMOLLM, Model, require

from hata_kernels.bits import unpack_bits
from hata_kernels.encoders import Encoder, make_encoder
from hata_kernels.score import exact_score, exact_score_naive, score, score_dtype, score_naive
from hata_kernels.select import select, select_naive, select_streaming

SLOTS = 5000


def make(method: str, model: Model, bits: int = 128, **options) -> Encoder:
    """Random weights, rounded to bfloat16, on the CPU."""
    heads, group, dim = model.kv_heads, model.group, model.dim
    if method == "hashattention":
        tensors = {}
        for side in ("key", "query"):
            for n, (size, out) in enumerate(((dim, 128), (128, 128), (128, 32))):
                weight = 2 * torch.randn(model.q_heads, size, out) / size**0.5
                tensors[f"{side}.{n}.weight"] = weight
                tensors[f"{side}.{n}.bias"] = torch.randn(model.q_heads, out)
    elif method == "asymmetric":
        tensors = {
            "key_weight": torch.randn(heads, dim, bits),
            "key_bias": dim**0.5 * torch.randn(heads, bits),
            "query_weight": torch.randn(heads, group * dim, bits),
            "query_bias": torch.randn(heads, bits),
        }
        if options.get("stages") == 2:
            half = bits // 2
            tensors["residual_weight"] = (dim / half) ** 0.5 * torch.randn(heads, half, half)
    else:
        tensors = {"weight": torch.randn(heads, dim, bits)}
    if options.get("scale_bits"):
        tensors["scale_step"] = torch.full((heads,), 1.3 * dim**0.5 / 2 ** options["scale_bits"])
    shape = {"num_kv_heads": heads, "group": group, "head_dim": dim}
    encoder = make_encoder(method, tensors, **shape, **options)
    return encoder.to("cpu", torch.bfloat16).to("cpu", torch.float32)


def require_share(wrong: torch.Tensor, most: float, what: str) -> None:
    """At most this share of the bits differs from the float32 definition's."""
    share = wrong.float().mean().item()
    require(share <= most, f"{what}: {share:.2e} differ, at most {most:.0e} by rounding")


def check_encoder(method: str, model: Model, bits: int, most: float, **options) -> None:
    """Keys scattered to slots with their scales, and queries, in bfloat16 and float32.

    Parameters
    ----------
    method, model, bits, **options
        As `make`.
    most : float
        Share of bits that may differ in bfloat16; more than a few in a million only where hidden
        layers are rounded.
    """
    encoder = make(method, model, bits, **options)
    for dtype, bound in ((torch.bfloat16, most), (torch.float32, 3e-4)):
        there = encoder.to(CUDA, dtype)
        for tokens in (1, 63, 3000):
            k = torch.randn(tokens, model.kv_heads, model.dim).to(dtype)
            q = torch.randn(tokens, model.q_heads, model.dim).to(dtype)
            shape = (SLOTS, model.kv_heads)
            codes = torch.full((*shape, encoder.words), -7, dtype=torch.int32, device=CUDA)
            scales = None
            if encoder.scale_bits:
                scales = torch.full(shape, 7, dtype=encoder.scale_dtype, device=CUDA)
            slots = torch.randperm(SLOTS)[:tokens]
            there.encode_keys(k.to(CUDA), codes=codes, slots=slots.to(CUDA), scales=scales)
            found = unpack_bits(codes.cpu()[slots])
            slack = 2 / found.numel()  # two bits
            wrong = found != encoder.key_bits(k)
            if options.get("stages") == 2:
                # One first-stage sign of the other side moves the key's whole second stage.
                first, second = wrong.chunk(2, dim=-1)
                moved = first.any(dim=-1, keepdim=True)
                require_share(moved, bits // 2 * bound + 2 / moved.numel(), f"keys moved, {dtype}")
                wrong = torch.cat([first, second & ~moved], dim=-1)
            require_share(wrong, bound + slack, f"key bits, {dtype}")
            rest = torch.ones(SLOTS, dtype=torch.bool)
            rest[slots] = False
            require(bool((codes.cpu()[rest] == -7).all()), "a slot of no token was written")
            if scales is not None:
                stored = scales.cpu()[slots].int() & (2**encoder.scale_bits - 1)
                off = (stored - encoder.key_scales(k)).abs().max().item()
                require(off <= 1, f"a scale is off by {off} steps")
                require(bool((scales.cpu()[rest] == 7).all()), "a slot's scale was written")
            planes = unpack_bits(there.encode_queries(q.to(CUDA)).cpu())
            expected = encoder.query_bits_of(q).flatten(1, 2)
            slack = 16 / planes.numel()  # a level moved by one may change every plane
            # Thresholds lie the denser the more levels there are.
            levels = 2**encoder.query_bits if method == "asymmetric" else 1
            share = bound * max(1, levels / 16)
            require_share(planes != expected, share + slack, f"query bits, {dtype}")


def check_scaled_score() -> None:
    """Exact equality for plane weights and scales; the widest needs 64-bit products."""
    for weights, words in (((1,) * 4, 4), ((1, 2, 4, 8), 4), ((1, 2), 3), ((3, 1, 5), 1),
                           (tuple(2**plane for plane in range(8)), 8)):  # fmt: skip
        for bits, dtype in ((0, None), (8, torch.uint8), (16, torch.int16)):
            codes = torch.randint(-(2**31), 2**31, (999, 2, words), dtype=torch.int32)
            q_codes = torch.randint(-(2**31), 2**31, (2, 2 * len(weights), words)).int()
            q_codes[:, : len(weights)] = q_codes[:, :1]
            codes[::5, 0], codes[1::5, 0] = q_codes[0, 0], ~q_codes[0, 0]
            scales = None
            if bits:
                scales = torch.randint(0, 2**bits, (999, 2)).to(dtype)
                scales[::3] = -1 if bits == 16 else 255
            table = torch.randint(0, 999, (2, 1300), dtype=torch.int32)
            arguments = (q_codes, codes, table, torch.tensor([1300, 333]))
            options = {"plane_weights": weights, "sink": 3, "recent": 5, "scale_bits": bits}
            expected = torch.zeros(2, 2, 1300, dtype=score_dtype(weights, 32 * words, bits))
            found = expected.to(CUDA)
            score_naive(*arguments, **options, out=expected, scales=scales)
            moved = None if scales is None else scales.to(CUDA)
            score(*(a.to(CUDA) for a in arguments), **options, out=found, scales=moved)
            require(torch.equal(found.cpu(), expected), f"weights {weights}, scales of {bits} bits")


def check_exact_score(model: Model) -> None:
    """Within float32 rounding of the CPU's softmax, around splits; nothing beyond the lengths."""
    k_cache = torch.randn(9000, model.kv_heads, model.dim).bfloat16()
    for lengths in ([1], [511, 512, 513], [6000, 1, 2049]):
        width = max(lengths)
        q = torch.randn(len(lengths), model.q_heads, model.dim).bfloat16()
        table = torch.randint(0, 9000, (len(lengths), width + 5), dtype=torch.int32)
        inputs = (q, k_cache, table, torch.tensor(lengths))
        options = {"scale": model.dim**-0.5, "sink": SINK, "recent": RECENT}
        expected = torch.full((len(lengths), model.kv_heads, width), float("nan"))
        found = expected.to(CUDA)
        exact_score_naive(*inputs, **options, out=expected)
        exact_score(*(a.to(CUDA) for a in inputs), **options, out=found)
        torch.testing.assert_close(found.cpu(), expected, rtol=5e-4, atol=1e-9, equal_nan=True)


def check_torch_selections() -> None:
    """Real scores with a budget per row, and streaming: equal to the CPU's, ties included."""
    for width, k_max in ((40, 64), (6000, 256), (40000, 2048)):
        lengths = torch.tensor([width, 1, width // 2, min(width, k_max + 1)])
        budgets = torch.tensor([k_max, 1, max(1, k_max // 2), k_max], dtype=torch.int32)
        table = torch.randint(0, 10**6, (4, width + 3), dtype=torch.int32)
        scores = torch.rand(4, 8, width) ** 8
        scores[..., :5] = float("inf")
        scores[..., width // 3 : width // 2] = 0.5
        for b, length in enumerate(lengths.tolist()):
            scores[b, :, length:] = float("nan")
        inputs = (scores, table, lengths, budgets)
        found = select(*(a.to(CUDA) for a in inputs), k_max=k_max)
        expected = select_naive(*inputs, k_max=k_max)
        require(torch.equal(found.cpu(), expected), f"top-k of {width}, k {k_max}")
        options = {"kv_heads": 8, "k_max": k_max, "sink": 16}
        found = select_streaming(*(a.to(CUDA) for a in inputs[1:]), **options)
        expected = select_streaming(*inputs[1:], **options)
        require(torch.equal(found.cpu(), expected), f"streaming of {width}, k {k_max}")


def encoder_checks() -> dict[str, Callable[[], None]]:
    """Every check of this file by name."""
    checks: dict[str, Callable[[], None]] = {}
    for model in (LLAMA, SMOLLM, QWEN):
        for bits, query_bits, scale_bits in ((128, 4, 0), (128, 1, 8), (64, 3, 16), (256, 8, 8)):
            name = f"encoder asymmetric {model.name} {bits} bits, B {query_bits}, m {scale_bits}"
            options = {"query_bits": query_bits, "scale_bits": scale_bits}
            checks[name] = lambda m=model, b=bits, o=options: check_encoder(
                "asymmetric", m, b, 3e-4, **o
            )
        for bits, scale_bits in ((128, 0), (256, 8), (96, 16), (32, 8), (64, 0), (512, 0)):
            name = f"encoder residual {model.name} {bits} bits, m {scale_bits}"
            options = {"scale_bits": scale_bits, "stages": 2}
            checks[name] = lambda m=model, b=bits, o=options: check_encoder(
                "asymmetric", m, b, 3e-4, **o
            )
        for scale_bits in (0, 8, 16):
            checks[f"encoder hata {model.name}, m {scale_bits}"] = lambda m=model, s=scale_bits: (
                check_encoder("hata", m, 256, 3e-4, scale_bits=s)
            )
        checks[f"encoder hashattention {model.name}"] = lambda m=model: check_encoder(
            "hashattention", m, 0, 3e-2
        )
        checks[f"exact score {model.name}"] = lambda m=model: check_exact_score(m)
    checks["score planes and scales"] = check_scaled_score
    checks["select by torch.topk, streaming"] = check_torch_selections
    return checks
