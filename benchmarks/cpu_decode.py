"""Decode latency of hata and of SGLang's dense backend after one long prompt, in alternation.

    python benchmarks/cpu_decode.py --out benchmarks/data/cpu_decode.csv

The demo model. Meant for a machine without a GPU, where dense is `torch_native`; on one with a GPU
dense is `flashinfer`. Each round starts a fresh server per arm, asks for a hidden fact (which
prefills the prompt), then times decode steps after the same, now cached, prompt, and after one of a
few tokens. The order of the arms turns around from round to round, so that a slow drift of the
machine favours none.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median, quantiles

from rich.console import Console
from transformers import AutoTokenizer

from hata_sglang.demo.model import ensure_demo_model
from hata_sglang.errors import HataError
from hata_sglang.evaluation.arms import arm_arguments, demo_config
from hata_sglang.evaluation.hidden_fact import make_prompts
from hata_sglang.evaluation.measurement import Measurement, measure
from hata_sglang.evaluation.provenance import write_csv
from hata_sglang.evaluation.server import ServerProcess, exit_on_sigterm

ARMS = ("dense", "asymmetric")
#: Of the prompt, and decode steps to time.
TOKENS, NEW_TOKENS = 6000, 64


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
    args = parser.parse_args()
    exit_on_sigterm()
    console = Console()
    rows: list[dict] = []
    try:
        model = ensure_demo_model()
        (fact,) = make_prompts(AutoTokenizer.from_pretrained(model), 1, TOKENS, documents=1)
        for number in range(args.rounds):
            for arm in ARMS if number % 2 == 0 else ARMS[::-1]:
                with (
                    arm_arguments(arm, model, demo_config()) as arguments,
                    ServerProcess(arguments) as server,
                ):
                    result = measure(server.client, fact, NEW_TOKENS)
                rows.append(to_row(number, arm, result))
                console.print(*rows[-1].values(), highlight=False, soft_wrap=True)
                write_csv(args.out, rows)
    except HataError as error:
        print(error, file=sys.stderr)
        return 2
    dense, sparse = (median(r["step_ms_p50"] for r in rows if r["arm"] == arm) for arm in ARMS)
    console.print(f"median step: dense {dense:.1f} ms, {ARMS[1]} {sparse:.1f} ms")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
