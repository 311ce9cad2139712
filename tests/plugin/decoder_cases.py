"""One decode step of every method, and what it should give, by brute force."""

from __future__ import annotations

import math
from itertools import product

import torch

from hata_kernels.score.distance import DISTANCES
from hata_sglang.config import HataConfig
from hata_sglang.decoding import Batch, LayerCache
from hata_sglang.methods import methods

HQ, HKV, DIM, LAYER = 6, 2, 64, 0
GROUP, SINK, RECENT = HQ // HKV, 4, 8
LENGTHS = (1, 5, 40, 41, 130, 200)
SLOTS = 700
SCALE = 1 / math.sqrt(DIM)
BUDGETS = {"fixed": 40, "ratio": {"ratio": 0.25, "min": 20, "max": 45}}


def rand(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


LINEAR = {"weight": rand(HKV, DIM, 64)}
STEP = {"scale_step": torch.full((HKV,), 0.05)}
ASYMMETRIC = {
    "key_weight": rand(HKV, DIM, 64),
    "key_bias": rand(HKV, 64),
    "query_weight": rand(HKV, GROUP * DIM, 64),
    "query_bias": rand(HKV, 64),
}
# By distance, of about as much as scores differ.
BIAS = {"distance_bias": -300 * rand(HKV, DISTANCES).abs()}
MLP = {
    f"{side}.{n}.{name}": rand(*shape)
    for side, n in product(("key", "query"), (0, 1))
    for name, shape in (("weight", (HQ, (DIM, 16)[n], (16, 32)[n])), ("bias", (HQ, (16, 32)[n])))
}
#: Case -> method, tensors and options of its encoder.
METHODS = {
    "hata": ("hata", LINEAR, {}),
    "hata, 8-bit scales": ("hata", LINEAR | STEP, {"scale_bits": 8}),
    "hashattention": ("hashattention", MLP, {}),
    "asymmetric": ("asymmetric", ASYMMETRIC | BIAS, {"query_bits": 3}),
    "asymmetric, 16-bit scales": ("asymmetric", ASYMMETRIC | STEP | BIAS, {"scale_bits": 16}),
    "random": ("random", LINEAR, {}),
    "exact": ("exact", None, {}),
    "streaming": ("streaming", None, {}),
}


def make_plan(method: str, budget):
    settings = {"method": method, "budget": budget, "sink": SINK, "recent": RECENT}
    if method in ("hata", "hashattention", "asymmetric"):
        settings["weights"] = "not read here"
    (plan,) = HataConfig.parse({**settings, "dense_layers": []}).resolve(1, 256)
    return plan


class Step:
    """One decode step: keys and values in scattered slots, their codes, and queries."""

    def __init__(self, name: str, budget: str, device: str = "cpu", dtype=torch.float32):
        method, tensors, options = METHODS[name]
        self.plan = make_plan(method, BUDGETS[budget])
        generator = torch.Generator().manual_seed(5)
        self.k, self.v, self.q = (
            torch.randn(n, heads, DIM, generator=generator).to(device, dtype)
            for n, heads in ((SLOTS, HKV), (SLOTS, HKV), (len(LENGTHS), HQ))
        )
        self.encoder = self.codes = self.scales = None
        if tensors is not None:
            shape = {"num_kv_heads": HKV, "group": GROUP, "head_dim": DIM}
            self.encoder = (
                methods()[method]
                .encoder.from_tensors(tensors, **shape, **options)
                .to(device, dtype)
            )
            words = self.encoder.words
            self.codes = torch.zeros(SLOTS, HKV, words, dtype=torch.int32, device=device)
            if self.encoder.scale_bits:
                self.scales = torch.zeros(SLOTS, HKV, dtype=self.encoder.scale_dtype, device=device)
            every = torch.arange(SLOTS, device=device)
            self.encoder.encode_keys(self.k, codes=self.codes, slots=every, scales=self.scales)
        # Rows of requests in another order than the requests', with slots all over the pool.
        order = torch.randperm(SLOTS - 1, generator=generator).int() + 1
        self.rows = torch.tensor([3, 0, 7, 2, 5, 1])
        table = torch.zeros(8, 256, dtype=torch.int32)
        self.slots = list(order[: sum(LENGTHS)].split(LENGTHS))
        for row, slots in zip(self.rows, self.slots, strict=True):
            table[row, : len(slots)] = slots
        lengths = torch.tensor(LENGTHS)
        self.batch = Batch(
            table.to(device), self.rows.to(device), lengths.to(device), lengths.clone()
        )

    def decode(self, decoder, **prepare):
        decoder.prepare(self.batch, **prepare)
        return decoder.decode(self.plan, self.q, self.cache)

    @property
    def cache(self):
        return LayerCache(self.k, self.v, self.codes, self.scales)

    @property
    def encoders(self):
        return {} if self.encoder is None else {LAYER: self.encoder}

    def scores(self, row: int, head: int) -> torch.Tensor:
        """Score of every token of a row for one KV head, as the readable definitions say."""
        slots = self.slots[row].to(self.q.device)
        group = slice(head * GROUP, (head + 1) * GROUP)
        keys, queries = self.k[slots, head].float(), self.q[row, group].float()
        if self.encoder is None:
            return (queries @ keys.T * SCALE).softmax(-1).sum(0)
        bits, planes = unpack(self.codes[slots, head]), self.planes()[row, head]
        weights = torch.tensor(self.encoder.plane_weights, device=bits.device)
        agreement = ((bits[:, None] == planes).sum(-1) * weights).sum(-1)
        if self.scales is None:
            return self.biased(row, head, agreement)
        full = self.encoder.bits * sum(self.encoder.plane_weights)
        top = 2**self.encoder.scale_bits - 1
        scale = self.scales[slots, head].long() % (top + 1)
        shift = next(n for n in range(64) if 2 * full * top >> n < 2047)
        return self.biased(row, head, ((2 * agreement - full) * scale + full * top) >> shift)

    def biased(self, row: int, head: int, scores: torch.Tensor) -> torch.Tensor:
        """Scores and what they gain by distance."""
        bias = self.encoder.encode_queries(self.q).bias
        if bias is None:
            return scores
        left = [len(scores) - token for token in range(len(scores))]  # d + 1
        octaves = [math.frexp(size)[1] - 1 for size in left]
        buckets = [2 * n + (2 * d >= 3 * 2**n) for n, d in zip(octaves, left, strict=True)]
        return (scores + bias[row, head, buckets]).clamp_min(0)

    def planes(self) -> torch.Tensor:
        return unpack(self.encoder.encode_queries(self.q).codes.unflatten(1, (HKV, -1)))

    def kept(self, row: int, head: int) -> list[int]:
        """Positions that a row keeps: forced ones, then the best, earlier ones first."""
        length = LENGTHS[row]
        budget = self.plan.budget.tokens(length)
        if length <= budget:
            return list(range(length))
        if self.plan.method == "streaming":
            return [*range(SINK), *range(length - budget + SINK, length)]
        scores = self.scores(row, head).tolist()
        forced = {*range(SINK), *range(length - RECENT, length)}
        order = sorted(range(length), key=lambda t: (t not in forced, -scores[t], t))
        return sorted(order[:budget])

    def expected(self, every_token: bool = False, mean: torch.Tensor | None = None) -> torch.Tensor:
        """Attention over what rows keep; with weights ``[Hq, RATIOS]``, the mean of the rest."""
        out = torch.zeros_like(self.q)
        for row, head in product(range(len(LENGTHS)), range(HKV)):
            kept = list(range(LENGTHS[row])) if every_token else self.kept(row, head)
            slots = self.slots[row][kept].to(self.q.device)
            for member in range(head * GROUP, (head + 1) * GROUP):
                logits = self.k[slots, head].float() @ self.q[row, member].float() * SCALE
                out[row, member] = logits.softmax(0) @ self.v[slots, head].float()
            if mean is not None and len(kept) < LENGTHS[row]:
                rest = [token for token in range(LENGTHS[row]) if token not in kept]
                left_out = self.v[self.slots[row][rest].to(self.q.device), head].float().mean(0)
                place = math.log2(LENGTHS[row] / len(kept))
                low = int(place)  # below the last ratio
                for member in range(head * GROUP, (head + 1) * GROUP):
                    first, second = mean[member, low : low + 2]
                    weight = first + (second - first) * (place - low)
                    out[row, member] += weight * (left_out - out[row, member])
        return out


def unpack(words: torch.Tensor) -> torch.Tensor:
    shifts = torch.arange(32, device=words.device)
    return ((words.unsqueeze(-1) >> shifts) & 1).flatten(-2)
