"""Decode latency of hata and of SGLang's dense backend after one long prompt, in alternation.

    python benchmarks/cpu_decode.py --out benchmarks/data/cpu_decode.csv

Meant for a machine without a GPU (dense is `torch_native` there); on one with a GPU dense is
`flashinfer`. Each round starts a fresh server per arm, asks for a hidden fact (which prefills the
prompt), then times decode steps after the same, now cached, prompt, and after one of a few tokens.
The order of the arms turns around from round to round, so that a slow drift of the machine favours
none.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median, quantiles

from rich.console import Console

from hata_sglang.config import HataConfig
from hata_sglang.demo.model import ensure_demo_model
from hata_sglang.errors import HataError
from hata_sglang.evaluation.arms import arm_arguments, demo_config
from hata_sglang.evaluation.hidden_fact import make_prompts
from hata_sglang.evaluation.measurement import Measurement, measure
from hata_sglang.evaluation.provenance import write_csv
from hata_sglang.evaluation.server import ServerProcess, exit_on_sigterm


def to_row(number: int, arm: str, result: Measurement) -> dict:
    """One CSV row: percentiles of the step latency in milliseconds, and what was read."""
    gaps = [gap * 1e3 for gap in result.speed.gaps_s]
    tenths = quantiles(gaps, n=10, method="inclusive")
    return {
        "round": number,
        "arm": arm,
        "context": result.speed.prompt_tokens,
        "steps": len(gaps),
        "step_ms_p20": round(tenths[1], 2),
        "step_ms_p50": round(median(gaps), 2),
        "step_ms_p80": round(tenths[7], 2),
        "short_step_ms_p50": round(result.short_step_ms, 2),
        "tokens_per_s": round(result.speed.tokens_per_s, 2),
        "first_token_s": round(result.answer.first_token_s, 2),
        "tokens_read": round(result.read.attended) if result.read else result.speed.prompt_tokens,
        "found": int(result.right),
    }


def main() -> int:
    """Command line of this benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="CSV to write")
    parser.add_argument("--rounds", type=int, default=3, help="servers per arm (default 3)")
    parser.add_argument("--tokens", type=int, default=6000, help="prompt length (default 6000)")
    parser.add_argument("--new-tokens", type=int, default=64, help="steps to time (default 64)")
    parser.add_argument("--model-path", type=Path, help="default: the demo model")
    parser.add_argument("--hata-config", type=Path, default=demo_config())
    args = parser.parse_args()
    exit_on_sigterm()
    console = Console()
    rows: list[dict] = []
    try:
        model = args.model_path or ensure_demo_model()
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model)
        (fact,) = make_prompts(tokenizer, 1, args.tokens, documents=1)
        method = HataConfig.load(args.hata_config).method
        arms = ("dense", method)
        for number in range(args.rounds):
            for arm in arms if number % 2 == 0 else arms[::-1]:
                with (
                    arm_arguments(arm, model, args.hata_config) as arguments,
                    ServerProcess(arguments) as server,
                ):
                    result = measure(server.client, fact, args.new_tokens)
                rows.append(to_row(number, arm, result))
                console.print(
                    " ".join(f"{key}={value}" for key, value in rows[-1].items()),
                    highlight=False,
                    soft_wrap=True,
                )
                write_csv(args.out, rows)
    except HataError as error:
        print(error, file=sys.stderr)
        return 2
    steps = {arm: median(r["step_ms_p50"] for r in rows if r["arm"] == arm) for arm in arms}
    console.print(
        f"median step: dense {steps['dense']:.1f} ms, {method} {steps[method]:.1f} ms; "
        f"{method} is {steps['dense'] / steps[method]:.2f} times as fast"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
