"""Share of hidden facts that dense, exact top-k and hash codes find, side by side.

    python benchmarks/hidden_fact.py --out benchmarks/data/hidden_fact.csv

Starts the real server once per arm, one after the other, with the same prompts, budget, sink,
recent and dense layers. Replies are greedy. On two CPU cores an arm takes about ten minutes.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hata_sglang.demo_model import ensure_demo_model
from hata_sglang.errors import HataError
from hata_sglang.evaluation.arms import ARMS, arm_arguments, arm_weights, demo_config
from hata_sglang.evaluation.hidden_fact import HiddenFact, ask, found, make_prompts
from hata_sglang.evaluation.provenance import write_csv
from hata_sglang.evaluation.server import ServerProcess, exit_on_sigterm


def run_arm(
    arm: str,
    facts: list[HiddenFact],
    model: Path,
    config: Path,
    weights: dict[str, str],
    log: Path,
    console: Console,
) -> list[dict]:
    """Ask every prompt on one server; one row per prompt."""
    rows = []
    with (
        arm_arguments(arm, model, config, weights) as arguments,
        ServerProcess(arguments, log=log) as server,
    ):
        for number, fact in enumerate(facts):
            start = time.perf_counter()
            reply = ask(server.base_url, fact.messages)
            rows.append(
                {
                    "arm": arm,
                    "prompt": number,
                    "subject": fact.subject,
                    "depth": fact.depth,
                    "tokens": reply.prompt_tokens,
                    "answer": fact.answer,
                    "reply": reply.text.strip(),
                    "found": int(found(fact.answer, reply.text)),
                    "seconds": round(time.perf_counter() - start, 2),
                }
            )
            console.print(
                f"{arm} {number + 1}/{len(facts)}: depth {fact.depth:.3f}, "
                f"{'found' if rows[-1]['found'] else 'MISSED'} {fact.answer}, "
                f"{rows[-1]['seconds']} s: {rows[-1]['reply']!r}",
                highlight=False,
                soft_wrap=True,
            )
        totals = server.counters() or {}
    read, context = totals.get("tokens_attended"), totals.get("tokens_in_context")
    if arm != "dense" and not (read and context and read < context):
        raise HataError(f"arm {arm} was not sparse: its counters are {totals}")
    # Dense attention has no counters: it reads the context.
    share = round(read / context, 5) if read and context else 1.0
    return [{**row, "share_of_context_read": share} for row in rows]


def side_by_side(rows: list[dict], arms: list[str]) -> Table:
    """One line per prompt, one column per arm, and the sums."""
    table = Table(title="Hidden facts found")
    for name in ("depth", "tokens", "answer", *arms):
        table.add_column(name, justify="right")
    by_prompt: dict[int, dict[str, dict]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt"], {})[row["arm"]] = row
    for _, line in sorted(by_prompt.items(), key=lambda item: item[1][arms[0]]["depth"]):
        first = line[arms[0]]
        marks = ("found" if line[arm]["found"] else "missed" for arm in arms)
        table.add_row(f"{first['depth']:.3f}", str(first["tokens"]), first["answer"], *marks)
    sums = (sum(row["found"] for row in rows if row["arm"] == arm) for arm in arms)
    table.add_section()
    table.add_row("found", "", f"of {len(by_prompt)}", *map(str, sums), style="bold")
    return table


def main() -> int:
    """Command line of this benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="CSV to write")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["dense", "exact", "asymmetric"])
    parser.add_argument("--n", type=int, default=20, help="prompts (default 20)")
    parser.add_argument("--tokens", type=int, default=6000, help="prompt length (default 6000)")
    parser.add_argument(
        "--documents", type=int, default=4, help="different documents among the prompts (default 4)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model-path", type=Path, help="default: the demo model")
    parser.add_argument(
        "--hata-config",
        type=Path,
        default=demo_config(),
        help="YAML whose method the sparse arms change (default: the demo model's)",
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        type=arm_weights,
        default=[],
        metavar="ARM=WEIGHTS",
        help="hash weights of trained arms other than the YAML's: a folder or a shipped name",
    )
    args = parser.parse_args()
    exit_on_sigterm()
    console = Console()
    rows: list[dict] = []
    try:
        model = args.model_path or ensure_demo_model()
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model)
        facts = make_prompts(tokenizer, args.n, args.tokens, args.seed, args.documents)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        for arm in args.arms:
            log = args.out.with_suffix(f".{arm}.log")
            weights = dict(args.weights)
            rows += run_arm(arm, facts, model, args.hata_config, weights, log, console)
            write_csv(args.out, rows)  # after every arm: a later one may fail
            log.unlink()
    except HataError as error:
        print(error, file=sys.stderr)
        return 2
    console.print(side_by_side(rows, args.arms))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
