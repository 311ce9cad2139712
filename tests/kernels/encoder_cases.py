"""What several tests of encoders share: random weights, definitions in float64, what is right."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.nn.functional import silu

from hata_kernels.encoders import AsymmetricEncoder, Encoder, LinearEncoder, MlpEncoder
from hata_kernels.score.distance import DISTANCES

ENCODERS: dict[str, type[Encoder]] = {
    "hata": LinearEncoder,
    "random": LinearEncoder,
    "asymmetric": AsymmetricEncoder,
    "hashattention": MlpEncoder,
}
# Levels closer to the next one than this share of all levels may round to either.
CLOSE = 1e-5


def unpack_bits(words: torch.Tensor) -> torch.Tensor:
    """Undo `pack_bits`: int32 ``[..., w]`` to bool ``[..., 32 * w]``."""
    shifts = torch.arange(32, dtype=torch.int32, device=words.device)
    return ((words.unsqueeze(-1) >> shifts) & 1).bool().flatten(-2)


def whole(*shape: int, most: int = 1) -> torch.Tensor:
    """Whole numbers: exact in half precision, and their sums in float32; many sums are zero."""
    return torch.randint(-most, most + 1, shape).float()


def make_tensors(
    method, kv_heads, group, dim, bits, scale_bits=0, hidden=(48, 40), stages=1, biased=False
) -> dict:
    """Random weights; ``hidden`` are the widths inside of the MLPs, ``biased`` is by distance."""
    if method == "hashattention":
        sizes = (dim, *hidden, 32)
        heads = kv_heads * group
        tensors = {}
        for side in ("key", "query"):
            for n, (size, out) in enumerate(pairwise(sizes)):
                tensors[f"{side}.{n}.weight"] = 2 * torch.randn(heads, size, out) / size**0.5
                tensors[f"{side}.{n}.bias"] = torch.randn(heads, out)
        return tensors
    if method == "asymmetric":
        tensors = {
            "key_weight": torch.randn(kv_heads, dim, bits),
            "key_bias": dim**0.5 * torch.randn(kv_heads, bits),
            "query_weight": torch.randn(kv_heads, group * dim, bits),
            "query_bias": dim**0.5 * torch.randn(kv_heads, bits),
        }
        if stages == 2:
            half = bits // 2
            # Residuals are about as large as projections.
            tensors["residual_weight"] = (dim / half) ** 0.5 * torch.randn(kv_heads, half, half)
        if biased:
            # About as much as scores differ.
            bias = -torch.rand(kv_heads, DISTANCES) * bits * (dim * group) ** 0.5
            tensors["distance_bias"] = bias - bias.amax(1, keepdim=True)
    else:
        tensors = {"weight": torch.randn(kv_heads, dim, bits)}
    if scale_bits:
        # About a tenth of the keys reach the largest scale.
        largest = 1.1 if method == "hata" else 1.2
        most = 2**scale_bits - 1
        tensors["scale_step"] = largest * dim**0.5 / most * (0.8 + 0.2 * torch.rand(kv_heads))
    return tensors


def make(
    method, kv_heads, group, dim, bits=64, *, hidden=(48, 40), biased=False, **options
) -> Encoder:
    size = {"scale_bits": options.get("scale_bits", 0), "stages": options.get("stages", 1)}
    size["biased"] = biased
    tensors = make_tensors(method, kv_heads, group, dim, bits, hidden=hidden, **size)
    shape = {"num_kv_heads": kv_heads, "group": group, "head_dim": dim}
    return ENCODERS[method].from_tensors(tensors, **shape, **options)


def make_buffers(encoder: Encoder, slots: int, poison, device="cpu"):
    """Poisoned codes and scales."""
    codes = poison(slots, encoder.num_kv_heads, encoder.words, dtype=torch.int32, device=device)
    if encoder.scale_bits == 0:
        return codes, None
    shape = (slots, encoder.num_kv_heads)
    return codes, torch.full(shape, 77, dtype=encoder.scale_dtype, device=device)


# method, KV heads, group, head size, bits, options
CASES = [
    pytest.param("hata", 3, 3, 64, 128, {}, id="hata-G3-D64-r128"),
    pytest.param("random", 1, 1, 96, 32, {}, id="random-G1-D96-r32"),
    pytest.param("hata", 2, 4, 128, 256, {"scale_bits": 8}, id="hata-scale8-r256"),
    pytest.param("hata", 2, 1, 80, 96, {"scale_bits": 16}, id="hata-scale16-D80-r96"),
    pytest.param("asymmetric", 3, 3, 64, 128, {}, id="asymmetric-B4-r128"),
    pytest.param("asymmetric", 1, 7, 80, 96, {"query_bits": 1}, id="asymmetric-B1-G7-D80-r96"),
    pytest.param(
        "asymmetric", 2, 2, 64, 256, {"query_bits": 8, "scale_bits": 16}, id="asymmetric-B8-scale16"
    ),
    pytest.param(
        "asymmetric", 2, 1, 96, 32, {"query_bits": 3, "scale_bits": 8, "clip": 1.7},
        id="asymmetric-B3-scale8-clip",
    ),
    pytest.param("asymmetric", 3, 3, 64, 128, {"stages": 2}, id="residual-B4-r128"),
    pytest.param(
        "asymmetric", 1, 7, 80, 96, {"query_bits": 5, "stages": 2}, id="residual-B5-D80-r96"
    ),
    pytest.param(
        "asymmetric", 2, 2, 64, 256, {"query_bits": 8, "scale_bits": 16, "stages": 2},
        id="residual-B8-scale16-r256",
    ),
    pytest.param(
        "asymmetric", 2, 1, 96, 32, {"query_bits": 3, "scale_bits": 8, "stages": 2},
        id="residual-B3-scale8-r32",
    ),
    pytest.param("asymmetric", 2, 3, 64, 64, {"biased": True, "stages": 2}, id="biased-B4-r64"),
    pytest.param(
        "asymmetric", 3, 1, 80, 96, {"biased": True, "query_bits": 6, "scale_bits": 8},
        id="biased-B6-scale8-D80-r96",
    ),
    pytest.param("hashattention", 3, 3, 64, 96, {}, id="mlp-3-layers-G3"),
    pytest.param("hashattention", 2, 1, 96, 32, {"hidden": (40,)}, id="mlp-2-layers-G1-D96"),
    pytest.param("hashattention", 2, 4, 64, 128, {"hidden": ()}, id="mlp-1-layer-G4"),
]  # fmt: skip
ALL = pytest.mark.parametrize(("method", "kv_heads", "group", "dim", "bits", "options"), CASES)


def outputs(x: torch.Tensor, tensors: dict, side: str) -> torch.Tensor:
    """Outputs of one query head's MLP in float64, for x [T, D] and the head's own tensors."""
    layers = sum(name.startswith(side) for name in tensors) // 2
    for n in range(layers):
        x = silu(x) if n else x
        x = x @ tensors[f"{side}.{n}.weight"] + tensors[f"{side}.{n}.bias"]
    return x


def key_numbers(encoder: Encoder, k: torch.Tensor) -> torch.Tensor:
    """What the key bits are the signs of, ``[T, Hkv, r]`` in float64, head by head."""
    tensors = {name: tensor.double() for name, tensor in encoder.tensors().items()}
    heads = []
    for h in range(encoder.num_kv_heads):
        x = k[:, h].double()
        if isinstance(encoder, LinearEncoder):
            heads.append(x @ tensors["weight"][h])
        elif isinstance(encoder, AsymmetricEncoder):
            numbers = x @ tensors["key_weight"][h] + tensors["key_bias"][h]
            if encoder.stages == 2:
                signs = torch.where(numbers[:, : encoder.bits // 2] > 0, 1.0, -1.0).double()
                numbers[:, encoder.bits // 2 :] += signs @ tensors["residual_weight"][h]
            heads.append(numbers)
        else:
            members = range(h * encoder.group, (h + 1) * encoder.group)
            own = [{name: tensor[g] for name, tensor in tensors.items()} for g in members]
            heads.append(torch.cat([outputs(x, head, "key") for head in own], dim=1))
    return torch.stack(heads, dim=1)


def query_numbers(encoder: Encoder, q: torch.Tensor) -> torch.Tensor:
    """What decides the query planes: signs of them for symmetric codes, else levels of them.

    float64 ``[T, Hkv, P, r]``; for asymmetric queries ``[T, Hkv, 1, r]``, in steps.
    """
    tensors = {name: tensor.double() for name, tensor in encoder.tensors().items()}
    group = encoder.group
    heads = []
    for h in range(encoder.num_kv_heads):
        members = [q[:, h * group + g].double() for g in range(group)]
        if isinstance(encoder, LinearEncoder):
            heads.append(torch.stack([x @ tensors["weight"][h] for x in members], dim=1))
        elif isinstance(encoder, AsymmetricEncoder):
            u = torch.cat(members, dim=1) @ tensors["query_weight"][h] + tensors["query_bias"][h]
            step = encoder.clip * (u**2).mean(dim=1, keepdim=True).sqrt()
            heads.append((u / step * 2 ** (encoder.query_bits - 1)).unsqueeze(1))
        else:
            own = [
                {name: tensor[h * group + g] for name, tensor in tensors.items()}
                for g in range(group)
            ]
            words = [outputs(x, head, "query") for x, head in zip(members, own, strict=True)]
            heads.append(torch.cat(words, dim=1).unsqueeze(1))
    return torch.stack(heads, dim=1)


def is_clear(numbers: torch.Tensor) -> torch.Tensor:
    """Whether a sign survives rounding; that of an exact zero, from a zero key, does."""
    return (numbers.abs() > 1e-4 * numbers.abs().mean()) | (numbers == 0)


def mostly(clear: torch.Tensor, share: float = 0.99) -> bool:
    """Whether a comparison of the clear ones says something; of a few, chance has any share."""
    return clear.numel() < 2000 or clear.double().mean().item() > share


def assert_key_bits(
    bits: torch.Tensor, encoder: Encoder, k: torch.Tensor, share: float = 0.99
) -> None:
    """Bits are the signs of the definition, but for those within rounding of zero."""
    numbers = key_numbers(encoder, k)
    clear = is_clear(numbers)
    assert mostly(clear, share)
    if encoder.options().get("stages") == 2:
        first, second = clear.chunk(2, dim=-1)
        # A first-stage sign within rounding of zero moves the whole second stage of its key.
        clear = torch.cat([first, second & first.all(dim=-1, keepdim=True)], dim=-1)
        assert mostly(clear, 0.9)
    assert torch.equal(bits[clear], (numbers > 0)[clear])


def assert_query_bits(planes: torch.Tensor, encoder: Encoder, q: torch.Tensor) -> None:
    numbers = query_numbers(encoder, q)
    if not isinstance(encoder, AsymmetricEncoder):
        clear = is_clear(numbers)
        assert mostly(clear)
        assert torch.equal(planes[clear], (numbers > 0)[clear])
        return
    half = 2 ** (encoder.query_bits - 1)
    weights = 2 ** torch.arange(encoder.query_bits).view(-1, 1)
    levels = (planes * weights).sum(dim=2) - half
    numbers = numbers.squeeze(2)
    clear = (numbers - numbers.round()).abs() > CLOSE * half * 2
    assert mostly(clear, 0.97)
    assert torch.equal(levels[clear].double(), numbers.floor().clamp(-half, half - 1)[clear])
    assert bool((levels - numbers.floor().clamp(-half, half - 1)).abs().le(1).all())


def assert_bias(found: torch.Tensor | None, encoder: Encoder, q: torch.Tensor) -> None:
    """What scores gain by distance is the rounded real number, where there is such a bias."""
    tensors = encoder.tensors()
    if "distance_bias" not in tensors:
        assert found is None
        return
    assert found.dtype == torch.int32
    bias = tensors["distance_bias"].double()
    if encoder.scale_bits:
        full = encoder.bits * (2**encoder.query_bits - 1) * 2 * (2**encoder.scale_bits - 1)
        shift = next(shift for shift in range(64) if full >> shift < 2047)
        bias /= tensors["scale_step"].double()[:, None] * 2**shift / 2
    whole_q = q.double().reshape(len(q), encoder.num_kv_heads, -1)
    u = torch.einsum("thi,hir->thr", whole_q, tensors["query_weight"].double())
    rms = (u + tensors["query_bias"].double()).square().mean(-1, keepdim=True).sqrt()
    step = encoder.clip * torch.where(rms == 0, 1.0, rms) / 2 ** (encoder.query_bits - 1)
    exact = (bias / step).clamp_min(-(2**20))
    error = (found - exact).abs()
    assert bool((error <= 0.5 + 1e-5 * exact.abs()).all())


def assert_scales(scales: torch.Tensor, encoder: Encoder, k: torch.Tensor) -> None:
    """Stored scales, as unsigned integers, are the rounded real ones."""
    if isinstance(encoder, LinearEncoder):
        real = k.double().norm(dim=-1)
    else:
        first_stage = encoder.bits // encoder.stages
        real = key_numbers(encoder, k)[..., :first_stage].abs().mean(dim=-1)
    most = 2**encoder.scale_bits - 1
    steps = (real / encoder.tensors()["scale_step"].double()).clamp(max=most)
    error = ((scales.long() & most) - steps).abs()
    # Half a step, and the rounding of float32 at 16 bits.
    assert bool((error <= 0.5 + 2e-6 * steps + 1e-9).all())
