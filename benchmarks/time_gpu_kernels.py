"""Time each stage of a sparse layer on a GPU; run by check_gpu_kernels.py after its checks.

Graphs rotate over several layers' buffers, so that nothing comes from the L2 cache that would not
in a model.
"""

from __future__ import annotations

import csv
import datetime
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import flashinfer
import torch
import triton
from gpu_layer import BITS, CUDA, LLAMA, SMOLLM, Layer, Model, capture, make_decode

from hata_kernels.attend import SparseDecode
from hata_kernels.encode import encode
from hata_kernels.score import score_levels
from hata_kernels.select import select
from hata_kernels.select.flashinfer_topk import select_flashinfer
from hata_kernels.select.triton import select_triton

SCENARIOS = [
    (LLAMA, 1, 32768, 512),
    (LLAMA, 8, 32768, 512),
    (LLAMA, 32, 32768, 512),
    (LLAMA, 1, 131072, 2048),
    (LLAMA, 4, 131072, 2048),
    (LLAMA, 8, 131072, 2048),
    (SMOLLM, 1, 8192, 256),
    (SMOLLM, 16, 8192, 256),
]


def time_stage(step: Callable[[int], object], layers: int, repeats: int = 30) -> list[float]:
    """Microseconds per call: graphs of one call per layer, replayed, timed by events."""

    def everything() -> None:
        for layer in range(layers):
            step(layer)

    graph = capture(everything)
    for _ in range(3):
        graph.replay()
    pairs = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    return [1000 * start.elapsed_time(end) / layers for start, end in pairs]


def make_dense(model: Model, layer: Layer, length: int):
    """FlashInfer's dense decode as SGLang calls it: page size 1, tensor cores from 4 heads on."""
    batch = layer.batch
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        torch.zeros(256 * 2**20, dtype=torch.uint8, device=CUDA),
        "NHD",
        use_cuda_graph=True,
        use_tensor_cores=model.group >= 4,
        paged_kv_indptr_buffer=torch.zeros(batch + 1, dtype=torch.int32, device=CUDA),
        paged_kv_indices_buffer=layer.token_slots.flatten(),
        paged_kv_last_page_len_buffer=torch.ones(batch, dtype=torch.int32, device=CUDA),
        backend="fa2",
    )
    wrapper.plan(
        torch.arange(batch + 1, dtype=torch.int32) * length,
        layer.token_slots.flatten(),
        torch.ones(batch, dtype=torch.int32),
        model.q_heads,
        model.kv_heads,
        model.dim,
        1,
        q_data_type=torch.bfloat16,
        kv_data_type=torch.bfloat16,
    )
    return wrapper


def time_scenario(model: Model, batch: int, length: int, k_max: int) -> dict[str, list[float]]:
    """Every stage of one sparse layer, the whole layer, and dense attention."""
    slots = batch * length + 1
    codes_bytes = slots * model.kv_heads * BITS // 8
    kv_bytes = 2 * slots * model.kv_heads * model.dim * 2
    count = max(2, min(32, math.ceil(2e8 / codes_bytes), int(24e9 / kv_bytes)))
    layers = [Layer(model, batch, length, slots) for _ in range(count)]
    for layer in layers:
        layer.fill([length] * batch)
    levels = score_levels(model.plane_weights, BITS)
    budgets = torch.full((batch,), k_max, dtype=torch.int32, device=CUDA)
    new_keys = torch.randn(batch, model.kv_heads, model.dim, device=CUDA).bfloat16()
    places = torch.randint(1, slots, (batch,), device=CUDA)
    q_codes = [encode(layer.q, layer.weight) for layer in layers]
    for layer, codes in zip(layers, q_codes, strict=True):
        layer.score(codes)
    picked = [
        select(layer.scores, layer.token_slots, layer.seq_lens, k_max, k_max=k_max)
        for layer in layers
    ]
    decode = make_decode(model, batch, k_max, True)
    counts = torch.full((batch,), min(k_max, length), dtype=torch.int32)
    decode.plan(counts)
    out = torch.empty_like(layers[0].q)
    dense = make_dense(model, layers[0], length)

    def by_flashinfer(i: int, tie_break: int = 0) -> torch.Tensor:
        layer = layers[i]
        return select_flashinfer(
            layer.scores, layer.token_slots, layer.seq_lens, k_max=k_max, tie_break=tie_break
        )

    def by_counting(i: int) -> torch.Tensor:
        layer = layers[i]
        return select_triton(
            layer.scores, layer.token_slots, layer.seq_lens, budgets, k_max=k_max, levels=levels
        )

    def attend(i: int, selected: torch.Tensor) -> None:
        decode.run(layers[i].q, layers[i].k_cache, layers[i].v_cache, selected, out=out)

    def whole(i: int, choose: Callable[[int], torch.Tensor]) -> None:
        layer = layers[i]
        encode(new_keys, layer.weight, out=layer.codes, slots=places)
        layer.score(encode(layer.q, layer.weight))
        attend(i, choose(i))

    stages: dict[str, Callable[[int], object]] = {
        "encode k": lambda i: encode(new_keys, layers[i].weight, out=layers[i].codes, slots=places),
        "encode q": lambda i: encode(layers[i].q, layers[i].weight),
        "score": lambda i: layers[i].score(q_codes[i]),
        "select flashinfer": by_flashinfer,
        "select counting": by_counting,
        "attend": lambda i: attend(i, picked[i]),
        "layer, flashinfer select": lambda i: whole(i, by_flashinfer),
        "layer, counting select": lambda i: whole(i, by_counting),
        "dense flashinfer": lambda i: dense.run(
            layers[i].q,
            (layers[i].k_cache.unsqueeze(1), layers[i].v_cache.unsqueeze(1)),
            out=out,
        ),
    }
    if k_max <= 2048:
        stages["select flashinfer, ties by position"] = lambda i: by_flashinfer(i, 1)
    times = {}
    for name, step in stages.items():
        try:
            times[name] = time_stage(step, count)
        except Exception as error:
            print(f"FAIL  timing {name}: {' '.join(str(error).split())[:300]}", flush=True)
            times[name] = []
    times["plan on the host, changed"] = time_plan(decode, counts, k_max)
    return times


def time_plan(decode: SparseDecode, counts: torch.Tensor, k_max: int) -> list[float]:
    """Host microseconds of a new plan."""
    times = []
    for turn in range(20):
        changed = counts.clone()
        changed[0] = max(1, k_max - 1 - turn)
        torch.cuda.synchronize()
        start = time.perf_counter()
        decode.plan(changed)
        times.append(1e6 * (time.perf_counter() - start))
    return times


def commit() -> str:
    """Commit of this checkout, or ``unknown`` outside of git."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"


def run_timings(path: Path, only: str) -> list[str]:
    """Time the scenarios, append each to the CSV as it is done, print a table; return failures."""
    failed = []
    versions = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "flashinfer": flashinfer.__version__,
        "date": datetime.date.today().isoformat(),
        "commit": os.environ.get("HATA_COMMIT") or commit(),
        "command": " ".join(["PYTHONPATH=kernels python", *sys.argv]),
    }
    columns = ["model", "batch", "context", "k", "stage", "us_p20", "us_p50", "us_p80", *versions]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for model, batch, length, k_max in SCENARIOS:
            title = f"{model.name} {batch} x {length}, k {k_max}"
            if only not in title:
                continue
            try:
                times = time_scenario(model, batch, length, k_max)
            except Exception as error:
                failed.append(title)
                message = " ".join(str(error).split())[:300]
                print(f"FAIL  timing {title}: {type(error).__name__}: {message}", flush=True)
                continue
            finally:
                torch.cuda.empty_cache()
            print(f"\n{title}, microseconds per layer: p20, median, p80", flush=True)
            for stage, values in times.items():
                if not values:
                    failed.append(f"{title}: {stage}")
                    continue
                low, _, _, high = statistics.quantiles(values, n=5)
                row = [f"{low:.1f}", f"{statistics.median(values):.1f}", f"{high:.1f}"]
                print(f"  {stage:38s} {row[0]:>9s} {row[1]:>9s} {row[2]:>9s}", flush=True)
                writer.writerow([model.name, batch, length, k_max, stage, *row, *versions.values()])
            file.flush()
    return failed
