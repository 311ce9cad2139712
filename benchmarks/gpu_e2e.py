"""SGLang's engine on one GPU, stock FlashInfer and hata in turn: same outputs, and how fast.

    python benchmarks/gpu_e2e.py --model DIR --out gpu_e2e.csv

Each arm is a process of its own with CUDA graphs on. ``demo`` arms run the model in DIR;
``llama`` arms run Llama-3.1-8B's shape with SGLang's dummy weights, which are good for speed but
give every token the same logits; ``wide`` arms run four layers of that shape with random weights
of the usual size, whose logits do tell. A ``cover`` arm has a budget of the whole context, so it
has to agree with the dense arm within bf16 rounding; every layer of it runs the sparse path.

Measured per arm and batch size: seconds per decode step, from the difference between generating
few and many tokens after the same cached prompt. Written: one CSV row per measurement.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LLAMA_31_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
RANDOM = "method: random\nsink: 16\nrecent: 64\ndense_layers: []\ninner_backend: flashinfer\n"
DEMO = "method: hata\nweights: smollm2-135m-instruct-hata-128b\nsink: 16\nrecent: 64\n"

#: Arm: YAML of hata (None: stock FlashInfer), prompt tokens, batch sizes, new tokens.
ARMS = {
    "demo/dense": (None, 6000, (1, 8), 64),
    "demo/cover": (RANDOM + "budget: 8192\n", 6000, (1, 8), 64),
    "demo/hata-256": (
        DEMO + "dense_layers: [0, 1]\nbudget: 256\ninner_backend: flashinfer\n",
        6000,
        (1, 8),
        64,
    ),
    "llama/dense": (None, 32768, (1, 8), 128),
    "llama/cover": (RANDOM + "budget: 34816\n", 32768, (1,), 32),
    "llama/hata-512": (RANDOM.replace("[]", "[0, 1]") + "budget: 512\n", 32768, (1, 8), 128),
    "llama/hata-ratio": (
        RANDOM.replace("[]", "[0, 1]") + "budget: {ratio: 0.0156, min: 256, max: 2048}\n",
        32768,
        (1, 8),
        128,
    ),
    "wide/dense": (None, 6000, (8,), 32),
    "wide/cover": (RANDOM + "budget: 8192\n", 6000, (8,), 32),
    "wide/hata-256": (RANDOM + "budget: 256\n", 6000, (8,), 32),
}
CONTEXT = {"demo": 8192, "llama": 34816, "wide": 8192}


def make_wide(folder: Path) -> None:
    """Write a checkpoint of four layers of Llama-3.1-8B's shape, weights of deviation 0.02."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**{**LLAMA_31_8B, "num_hidden_layers": 4})
    with torch.device("cuda"):
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def prompts(arm: str, model: str, tokens: int, count: int) -> list[list[int]]:
    """Token ids of `count` prompts, the same for every arm of a model."""
    import random

    dice = random.Random(0)
    vocab = 40000 if arm.startswith("demo") else 100000
    return [[dice.randrange(1000, vocab) for _ in range(tokens)] for _ in range(count)]


def run_arm(arm: str, model: str) -> dict:
    """Start an engine for one arm; return its outputs and times."""
    import sglang

    yaml, tokens, batches, new = ARMS[arm]
    kind = arm.split("/")[0]
    started = time.perf_counter()
    engine = sglang.Engine(
        model_path=model,
        skip_tokenizer_init=True,
        context_length=CONTEXT[kind],
        load_format="dummy" if kind == "llama" else "auto",
        attention_backend="hata" if yaml else "flashinfer",
        cuda_graph_bs_decode=sorted(batches),
        cuda_graph_backend_prefill="disabled",
        max_running_requests=max(batches),
        random_seed=0,
        mem_fraction_static=0.8,
        log_level="info",
    )
    result = {"arm": arm, "start_s": time.perf_counter() - started, "rows": []}
    ids = prompts(arm, model, tokens, max(batches))

    def generate(batch: int, count: int):
        start = time.perf_counter()
        outputs = engine.generate(
            input_ids=ids[:batch],
            return_logprob=count <= 16,
            sampling_params={"temperature": 0, "max_new_tokens": count, "ignore_eos": True},
        )
        return outputs, time.perf_counter() - start

    start = time.perf_counter()
    generate(max(batches), 1)
    result["prefill_s"] = time.perf_counter() - start
    outputs, _ = generate(max(batches), 16)
    result["tokens"] = [o["output_ids"] for o in outputs]
    result["logprobs"] = [
        [float(p[0]) for p in o["meta_info"]["output_token_logprobs"]] for o in outputs
    ]
    for batch in batches:
        few, many = 17, 17 + new
        generate(batch, few)
        seconds = []
        for _ in range(3):
            _, short = generate(batch, few)
            _, long = generate(batch, many)
            seconds.append((long - short) / new)
        result["rows"].append({"batch": batch, "context": tokens, "step_s": sorted(seconds)[1]})
    info = engine.get_server_info()
    states = info.get("internal_states") or [{}]
    result["hata"] = states[0].get("hata")
    result["pool_tokens"] = states[0].get("memory_usage", {}).get("token_capacity")
    engine.shutdown()
    return result


def compare(dense: dict, cover: dict) -> dict:
    """Agreement of an arm with the dense arm: tokens, and log-probabilities while equal.

    Log-probabilities come from bf16 logits: one step of these is 0.06 to 0.125 at their size.
    """
    worst, same, total = 0.0, 0, 0
    for a, b, p, q in zip(
        dense["tokens"], cover["tokens"], dense["logprobs"], cover["logprobs"], strict=False
    ):
        equal = next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))
        same, total = same + equal, total + len(a)
        worst = max([worst, *(abs(x - y) for x, y in zip(p[:equal], q[:equal], strict=True))])
    return {"tokens_equal_before_divergence": same, "tokens": total, "worst_logprob_gap": worst}


def versions() -> dict:
    """Commit, device and versions for the CSV."""
    import flashinfer
    import sglang
    import torch
    import triton

    commit = (
        os.environ.get("HATA_COMMIT")
        or subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parent,
        ).stdout.strip()
    )
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "device": torch.cuda.get_device_name(),
        "sglang": sglang.__version__,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "flashinfer": flashinfer.__version__,
    }


def write_csv(path: str, rows: list[dict]) -> None:
    """Write what is there so far: an arm that breaks later loses nothing."""
    with open(path, "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Run the arms one after the other; print and write what they measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="checkpoint of the demo model")
    parser.add_argument("--out", required=True, help="CSV to write")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--arm-json", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm_json:
        Path(args.arm_json).write_text(json.dumps(run_arm(args.arms[0], args.model)))
        return
    results, rows, failed = {}, [], []
    stamp = {**versions(), "command": " ".join(["python", *sys.argv])}
    with tempfile.TemporaryDirectory() as tmp:
        llama = Path(tmp) / "llama"
        llama.mkdir()
        (llama / "config.json").write_text(json.dumps(LLAMA_31_8B))
        wide = Path(tmp) / "wide"
        if any(arm.startswith("wide") for arm in args.arms):
            subprocess.run(
                [
                    sys.executable,
                    "-c",
                    "import sys; sys.path.insert(0, sys.argv[1])\n"
                    "from pathlib import Path; import gpu_e2e\n"
                    "gpu_e2e.make_wide(Path(sys.argv[2]))",
                    str(Path(__file__).parent),
                    str(wide),
                ],
                check=True,
            )
        for arm in args.arms:
            env = dict(os.environ)
            if ARMS[arm][0]:
                config = Path(tmp) / "hata.yaml"
                config.write_text(ARMS[arm][0])
                env["HATA_CONFIG"] = str(config)
            answer = Path(tmp) / "arm.json"
            log = Path(args.out).with_suffix(f".{arm.replace('/', '-')}.log")
            kind = arm.split("/")[0]
            model = {"llama": str(llama), "wide": str(wide)}.get(kind, args.model)
            command = [
                sys.executable,
                __file__,
                "--model",
                model,
                "--out",
                args.out,
                "--arms",
                arm,
                "--arm-json",
                str(answer),
            ]
            with log.open("w") as stream:
                code = subprocess.run(command, env=env, stdout=stream, stderr=stream).returncode
            if not answer.exists():
                failed.append(arm)
                print(f"{arm}: FAILED ({code}), see {log}\n{log.read_text()[-1500:]}", flush=True)
                continue
            result = results[arm] = json.loads(answer.read_text())
            answer.unlink()
            dense = results.get(arm.split("/")[0] + "/dense")
            agreement = compare(dense, result) if dense and not arm.endswith("dense") else {}
            for name in ("tokens", "logprobs"):
                print(f"  first {name}: {result[name][0][:6]}", flush=True)
            print(
                f"{arm}: start {result['start_s']:.0f} s, pool {result['pool_tokens']} tokens, "
                f"{result['hata']}, {agreement}",
                flush=True,
            )
            for row in result["rows"]:
                rows.append(
                    {
                        "arm": arm,
                        **row,
                        "tokens_per_s": row["batch"] / row["step_s"],
                        **agreement,
                        "pool_tokens": result["pool_tokens"],
                        "prefill_s": result["prefill_s"],
                        "start_s": result["start_s"],
                        **(result["hata"] or {}),
                    }
                )
                print(
                    f"  batch {row['batch']} x {row['context']}: {row['step_s'] * 1e3:.2f} ms "
                    f"a step, {row['batch'] / row['step_s']:.0f} tokens/s",
                    flush=True,
                )
            write_csv(args.out, [{**row, **stamp} for row in rows])
    if failed:
        raise SystemExit(f"arms that failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
