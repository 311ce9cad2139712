"""Check every GPU kernel path against the CPU references, then time each stage.

For a CUDA machine with torch, triton and flashinfer only:

    PYTHONPATH=kernels python benchmarks/check_gpu_kernels.py --out kernels.csv

Every check runs, whatever the others did; the exit code is 1 if any failed. Stages are timed after
the checks, from CUDA graphs that rotate over several layers' buffers, so that nothing comes from
the L2 cache that would not in a model.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import flashinfer
import torch
import triton
from check_gpu_encoders import encoder_checks
from gpu_layer import (
    BITS,
    CUDA,
    LLAMA,
    QWEN,
    RECENT,
    SINK,
    SMOLLM,
    Layer,
    Model,
    capture,
    make_decode,
    require,
)
from time_gpu_kernels import run_timings

from hata_kernels.attend import attend_naive, workspace_bytes
from hata_kernels.bits import unpack_bits
from hata_kernels.encode import encode
from hata_kernels.score import score, score_dtype, score_levels, score_naive
from hata_kernels.select import select, select_naive
from hata_kernels.select.flashinfer_topk import select_flashinfer
from hata_kernels.select.triton import select_triton

# ---- what is right ----------------------------------------------------------------------------


def require_codes(codes: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> None:
    """Every bit is the float64 projection's sign, unless that is within rounding of zero."""
    group = x.shape[1] // weight.shape[0]
    rows = x.double().unflatten(1, (-1, group))
    value = torch.einsum("thgd,hdr->thgr", rows, weight.double()).flatten(1, 2)
    norms = weight.double().norm(dim=1).repeat_interleave(group, dim=0)
    clear = value.abs() > 1e-5 * x.double().norm(dim=-1, keepdim=True) * norms
    wrong = ((unpack_bits(codes) != (value > 0)) & clear).sum().item()
    require(wrong == 0, f"{wrong} of {value.numel()} bits are wrong")


def require_scores(layer: Layer, q_codes: torch.Tensor) -> None:
    """Scores within the lengths equal the reference, those beyond are untouched NaN."""
    expected = torch.full(layer.scores.shape, float("nan"), dtype=layer.scores.dtype)
    arguments = (q_codes, layer.codes, layer.token_slots, layer.seq_lens)
    options = {"plane_weights": layer.model.plane_weights, "sink": SINK, "recent": RECENT}
    score_naive(*(a.cpu() for a in arguments), **options, out=expected)
    torch.testing.assert_close(layer.scores.cpu(), expected, rtol=0, atol=0, equal_nan=True)


def require_selection(layer: Layer, selected: torch.Tensor, budgets: list[int]) -> None:
    """Exactly the budget, distinct tokens, and their scores are the best ones."""
    scores, table = layer.scores.float().cpu(), layer.token_slots.cpu()
    for b, length in enumerate(layer.seq_lens.tolist()):
        count = min(length, budgets[b])
        place = torch.full((layer.slots,), -1, dtype=torch.int64)
        place[table[b, :length].long()] = torch.arange(length)
        rows = selected[b].cpu()
        require(bool((rows[:, count:] == -1).all()), f"row {b}: not -1 after {count} entries")
        for h in range(rows.shape[0]):
            slots = rows[h, :count].long()
            require(bool(((slots >= 0) & (slots < layer.slots)).all()), f"row {b},{h}: bad slot")
            tokens = place[slots]
            require(bool((tokens >= 0).all()), f"row {b}, head {h}: a slot of another request")
            require(tokens.unique().numel() == count, f"row {b}, head {h}: repeated tokens")
            best = scores[b, h, :length].topk(count).values
            found = scores[b, h, tokens].sort(descending=True).values
            require(torch.equal(best, found), f"row {b}, head {h}: better tokens were left out")


def require_attention(
    layer: Layer, selected: torch.Tensor, counts: torch.Tensor, out: torch.Tensor
) -> None:
    """Attention over the selection, within bf16 rounding of the reference in float32."""
    tensors = (layer.q.float(), layer.k_cache.float(), layer.v_cache.float(), selected)
    expected = attend_naive(*(a.cpu() for a in tensors), counts, scale=layer.model.dim**-0.5)
    error = (out.float().cpu() - expected).norm() / expected.norm()
    require(bool(error < 1e-2), f"relative error {error:.2e}")


# ---- checks -----------------------------------------------------------------------------------


def check_encode(model: Model, weight_dtype: torch.dtype, bits: int) -> None:
    """Keys scattered to slots, and queries, for one token, odd and long batches."""
    weight = torch.randn(model.kv_heads, model.dim, bits, device=CUDA).to(weight_dtype)
    for tokens in (1, 63, 4096):
        k = torch.randn(tokens, model.kv_heads, model.dim, device=CUDA).bfloat16()
        slots = torch.randperm(5000, device=CUDA)[:tokens]
        codes = torch.full((5000, model.kv_heads, bits // 32), -7, device=CUDA, dtype=torch.int32)
        for kind in (torch.int64, torch.int32):
            encode(k, weight, out=codes, slots=slots.to(kind))
            require_codes(codes[slots], k, weight)
        rest = torch.ones(5000, dtype=torch.bool, device=CUDA)
        rest[slots] = False
        require(bool((codes[rest] == -7).all()), "a slot of no token was written")
        q = torch.randn(tokens, model.q_heads, model.dim, device=CUDA).bfloat16()
        require_codes(encode(q, weight), q, weight)


def check_encode_float32() -> None:
    """float32 inputs must not lose bits to tf32; odd head sizes are masked."""
    for dim, bits in ((64, 128), (96, 96), (128, 32), (256, 256)):
        x = torch.randn(77, 6, dim, device=CUDA)
        weight = torch.randn(3, dim, bits, device=CUDA)
        require_codes(encode(x, weight), x, weight)
        half = x.half()
        require_codes(encode(half, weight.half()), half, weight.half())


def check_score(model: Model) -> None:
    """Exact equality, for lengths around the block size and from 1 to the width."""
    for lengths in ([1], [512, 513], [6000, 1, 47, 2049]):
        layer = Layer(model, len(lengths), max(lengths), 7000)
        layer.fill(lengths)
        q_codes = encode(layer.q, layer.weight)
        for dtype in (torch.int64, torch.int32):
            layer.seq_lens = layer.seq_lens.to(dtype)
            layer.scores.fill_(float("nan"))
            layer.score(q_codes)
            require_scores(layer, q_codes)


def check_score_shapes() -> None:
    """Word counts and group sizes beside the models'; float32 scores."""
    for kv_heads, group, words in ((1, 1, 1), (2, 8, 3), (3, 5, 4), (1, 16, 4), (2, 8, 8)):
        codes = torch.randint(-(2**31), 2**31, (999, kv_heads, words), dtype=torch.int32)
        q_codes = torch.randint(-(2**31), 2**31, (2, kv_heads * group, words), dtype=torch.int32)
        table = torch.randint(0, 999, (2, 700), dtype=torch.int32)
        lengths = torch.tensor([700, 333])
        weights = (1,) * group
        expected = torch.zeros(2, kv_heads, 700, dtype=score_dtype(weights, 32 * words))
        found = expected.to(CUDA)
        arguments = (q_codes, codes, table, lengths)
        options = {"plane_weights": weights, "sink": 3, "recent": 5}
        score_naive(*arguments, **options, out=expected)
        score(*(a.to(CUDA) for a in arguments), **options, out=found)
        require(torch.equal(found.cpu(), expected), f"heads {kv_heads}, G {group}, W {words}")


def check_select(model: Model, width: int, k_max: int) -> None:
    """All three selections on real scores, ties included; the ordered ones exactly."""
    lengths = [width, 1, width // 2, min(width, k_max), min(width, k_max + 1)]
    layer = Layer(model, len(lengths), width, width + 1)
    layer.fill(lengths)
    layer.scores.fill_(float("nan"))
    layer.score(encode(layer.q, layer.weight))
    arguments = (layer.scores, layer.token_slots, layer.seq_lens)
    host = tuple(a.cpu() for a in arguments)
    levels = score_levels(model.plane_weights, BITS)
    require_selection(layer, select(*arguments, k_max, k_max=k_max), [k_max] * len(lengths))
    expected = select_naive(*host, k_max, k_max=k_max)
    if k_max <= 2048:
        early = select_flashinfer(*arguments, k_max=k_max, tie_break=1).cpu()
        same = torch.equal(early.sort(-1).values, expected.sort(-1).values)
        require(same, "FlashInfer with tie_break differs from the reference as a set")
    for keep in ([k_max] * len(lengths), [max(1, k_max // (b + 1)) for b in range(len(lengths))]):
        budgets = torch.tensor(keep, dtype=torch.int32)
        expected = select_naive(*host, budgets, k_max=k_max)
        for _ in range(3):
            out = torch.full(expected.shape, -9, dtype=torch.int32, device=CUDA)
            select_triton(*arguments, budgets.to(CUDA), k_max=k_max, levels=levels, out=out)
            require(torch.equal(out.cpu(), expected), "counting select differs from reference")


def check_attend(model: Model, graph: bool) -> None:
    """FlashInfer over the selection; plans for long, ragged and one-token rows."""
    batch, k_max = 6, 700
    layer = Layer(model, batch, 3000, 9000)
    decode = make_decode(model, batch, k_max, graph)
    for lengths in ([3000] * 6, [1, 700, 3000, 129, 128, 2], [1] * 6, [699, 701, 700, 5, 9, 3000]):
        layer.fill(lengths)
        layer.score(encode(layer.q, layer.weight))
        selected = select(layer.scores, layer.token_slots, layer.seq_lens, k_max, k_max=k_max)
        counts = torch.tensor([min(length, k_max) for length in lengths], dtype=torch.int32)
        decode.plan(counts)
        out = torch.full_like(layer.q, float("nan"))
        decode.run(layer.q, layer.k_cache, layer.v_cache, selected, out=out)
        require_attention(layer, selected, counts, out)


def check_full_context(model: Model) -> None:
    """A budget of at least the context gives dense attention."""
    layer = Layer(model, 2, 500, 1000)
    layer.fill([500, 77])
    decode = make_decode(model, 2, 512, False)
    decode.plan(torch.tensor([500, 77], dtype=torch.int32))
    layer.score(encode(layer.q, layer.weight))
    selected = select(layer.scores, layer.token_slots, layer.seq_lens, 512, k_max=512)
    out = decode.run(layer.q, layer.k_cache, layer.v_cache, selected)
    for row, length in enumerate((500, 77)):
        tokens = layer.token_slots[row, :length]
        ordered = torch.equal(selected[row, :, :length], tokens.expand(model.kv_heads, -1))
        require(ordered, f"row {row}: the whole context is not in position order")
        dense = torch.nn.functional.scaled_dot_product_attention(
            layer.q[row].float()[None, :, None],
            layer.k_cache[tokens].float().transpose(0, 1)[None],
            layer.v_cache[tokens].float().transpose(0, 1)[None],
            enable_gqa=True,
        )[0, :, 0]
        error = (out[row].float() - dense).norm() / dense.norm()
        require(bool(error < 1e-2), f"row {row}: relative error {error:.2e}")


class Chain:
    """One sparse layer's step, captured: encode q, score, select, attend."""

    def __init__(self, model: Model, batch: int, width: int, k_max: int, ratio: bool, **shared):
        self.layer = Layer(model, batch, width, width + 500)
        self.layer.fill([1] * batch)
        self.budgets = torch.full((batch,), k_max, device=CUDA, dtype=torch.int32)
        self.out = torch.empty_like(self.layer.q)
        self.decode = make_decode(model, batch, k_max, True, shared or None)
        self.ratio, self.k_max = ratio, k_max
        self.decode.plan(torch.ones(batch, dtype=torch.int32))
        self.graph = capture(self.step)

    def step(self) -> None:
        """Run the layer; only ever under capture or to warm up."""
        layer = self.layer
        self.q_codes = encode(layer.q, layer.weight)
        layer.score(self.q_codes)
        self.selected = select(
            layer.scores, layer.token_slots, layer.seq_lens,
            self.budgets if self.ratio else self.k_max,
            k_max=self.k_max, levels=score_levels(layer.model.plane_weights, BITS),
        )  # fmt: skip
        self.decode.run(layer.q, layer.k_cache, layer.v_cache, self.selected, out=self.out)

    def replay(self, lengths: list[int]) -> torch.Tensor:
        """Fresh inputs, a new plan, one replay; returns the host counts."""
        keep = [self.k_max] * len(lengths)
        if self.ratio:
            keep = [min(self.k_max, max(16, math.ceil(0.1 * length))) for length in lengths]
            self.budgets.copy_(torch.tensor(keep, dtype=torch.int32))
        self.keep = keep
        self.layer.fill(lengths)
        counts = torch.tensor(list(map(min, lengths, keep)), dtype=torch.int32)
        self.decode.plan(counts)
        self.layer.scores.fill_(float("nan"))
        self.selected.fill_(-9)
        self.out.fill_(float("nan"))
        self.graph.replay()
        return counts

    def verify(self, counts: torch.Tensor) -> None:
        """Every stage of the last replay against its reference, given the stage before it."""
        require_codes(self.q_codes, self.layer.q, self.layer.weight)
        require_scores(self.layer, self.q_codes)
        require_selection(self.layer, self.selected, self.keep)
        require_attention(self.layer, self.selected, counts, self.out)


LENGTHS = ([3000, 1, 257, 999], [1] * 4, [256, 255, 3000, 2], [3000] * 4, [17, 3000, 90, 256])


def check_graph(model: Model, ratio: bool) -> None:
    """Replays with other lengths and plans, down to one token, without a new capture."""
    chain = Chain(model, 4, 3000, 256, ratio)
    for lengths in LENGTHS:
        chain.verify(chain.replay(lengths))


def check_shared_buffers(model: Model) -> None:
    """Two captured batch sizes that share workspace and page scratch, replayed in turn."""
    sms = torch.cuda.get_device_properties(CUDA).multi_processor_count
    size = workspace_bytes(4 * model.kv_heads, model.group, model.dim, sms)
    shared = {
        "workspace": torch.zeros(size, dtype=torch.uint8, device=CUDA),
        "pages": torch.empty(4 * model.kv_heads * 256, dtype=torch.int32, device=CUDA),
    }
    four, one = (
        Chain(model, 4, 3000, 256, False, **shared),
        Chain(model, 1, 900, 256, False, **shared),
    )
    for lengths in LENGTHS:
        first = four.replay(lengths)
        second = one.replay([max(1, lengths[2] // 4)])
        four.verify(first)
        one.verify(second)


def check_plans_without_waiting(model: Model) -> None:
    """Plans issued faster than the GPU works: none may disturb an earlier replay."""
    chain = Chain(model, 4, 3000, 256, False)
    layer = chain.layer
    layer.fill([3000] * 4)
    turns = [[1 + (turn * 37 + 61 * row) % 300 for row in range(4)] for turn in range(20)]
    # All inputs are on the device beforehand: nothing below but `plan` can wait for it.
    lengths = torch.tensor(turns, device=CUDA)
    queries = torch.randn(20, *layer.q.shape, device=CUDA).bfloat16()
    counts = torch.tensor(turns, dtype=torch.int32).clamp(max=256)
    done = []
    torch.cuda.synchronize()
    for turn in range(20):
        torch.cuda._sleep(2_000_000)  # about a millisecond: the GPU falls behind
        layer.seq_lens.copy_(lengths[turn])
        layer.q.copy_(queries[turn])
        chain.decode.plan(counts[turn])
        chain.graph.replay()
        done.append((chain.selected.clone(), chain.out.clone()))
    for turn, (selected, out) in enumerate(done):
        layer.q.copy_(queries[turn])
        require_attention(layer, selected, counts[turn], out)


def all_checks() -> dict[str, Callable[[], None]]:
    """Every check by name."""
    checks: dict[str, Callable[[], None]] = {"encode float32, float16": check_encode_float32}
    for model in (LLAMA, SMOLLM):
        for dtype, bits in ((torch.bfloat16, 128), (torch.float32, 128), (torch.bfloat16, 256)):
            name = f"encode {model.name} {bits} bits, weight {str(dtype)[6:]}"
            checks[name] = lambda m=model, d=dtype, b=bits: check_encode(m, d, b)
        checks[f"score {model.name}"] = lambda m=model: check_score(m)
        for width, k_max in ((40, 64), (6000, 1), (6000, 256), (40000, 2048)):
            name = f"select {model.name} width {width} k {k_max}"
            checks[name] = lambda m=model, w=width, k=k_max: check_select(m, w, k)
    checks["score other shapes"] = check_score_shapes
    checks.update(encoder_checks())
    for model in (LLAMA, SMOLLM, QWEN):
        for graph in (False, True):
            name = f"attend {model.name} {'graph buffers' if graph else 'eager'}"
            checks[name] = lambda m=model, g=graph: check_attend(m, g)
        checks[f"whole context {model.name}"] = lambda m=model: check_full_context(m)
        for ratio in (False, True):
            name = f"graph chain {model.name} {'ratio budgets' if ratio else 'one budget'}"
            checks[name] = lambda m=model, r=ratio: check_graph(m, r)
    checks["graph chain, shared buffers"] = lambda: check_shared_buffers(LLAMA)
    checks["graph chain, plans without waiting"] = lambda: check_plans_without_waiting(SMOLLM)
    return checks


def run_checks(only: str) -> list[str]:
    """Run the checks whose name contains ``only``; return the names of those that failed."""
    failed = []
    for name, check in all_checks().items():
        if only not in name:
            continue
        seed = time.time_ns() % 2**31
        torch.manual_seed(seed)
        start = time.time()
        try:
            check()
            torch.cuda.synchronize()
            print(f"ok    {time.time() - start:6.1f} s  {name}", flush=True)
        except Exception as error:
            failed.append(name)
            frames = traceback.extract_tb(error.__traceback__)[-3:]
            where = " > ".join(f"{Path(f.filename).name}:{f.lineno}" for f in frames)
            message = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
            print(f"FAIL  {time.time() - start:6.1f} s  {name}  (seed {seed})")
            print(f"      {message}\n      at {where}", flush=True)
            try:
                torch.cuda.synchronize()
            except RuntimeError as broken:
                print(f"The CUDA context is broken, stopping: {broken}", flush=True)
                sys.exit(1)
    return failed


def main() -> int:
    """Run checks, then timings; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="CSV file of the timings")
    parser.add_argument("--only", default="", help="checks whose name contains this text")
    parser.add_argument("--scenario", default="", help="timings whose title contains this text")
    parser.add_argument("--no-checks", action="store_true")
    parser.add_argument("--no-times", action="store_true")
    arguments = parser.parse_args()
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}, "
        f"flashinfer {flashinfer.__version__}",
        flush=True,
    )
    failed = [] if arguments.no_checks else run_checks(arguments.only)
    if not arguments.no_times:
        failed += run_timings(arguments.out, arguments.scenario)
    print(f"\n{len(failed)} failed" + "".join(f"\n  {name}" for name in failed), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
