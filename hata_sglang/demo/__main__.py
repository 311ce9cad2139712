"""``python -m hata_sglang.demo``: one question to a sparse server, then the same to a dense one.

Starts the real server twice, one after the other: with hata, then with SGLang's own attention
backend. Asks both, through OpenAI's Python client, for a fact hidden in a long document, and
shows the answers, how many tokens a decode step read, how fast it was, and which share of a step
the context took: what a step took longer than one after a prompt of a few tokens.

Flags other than those below go to both servers. Exit code 0: both servers answered and hata was
sparse; 2: not, with the reason on standard error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from hata_sglang.config import HataConfig
from hata_sglang.demo.model import ensure_demo_model
from hata_sglang.errors import HataError
from hata_sglang.evaluation.arms import demo_config
from hata_sglang.evaluation.client import Client, Reply
from hata_sglang.evaluation.server import exit_on_sigterm
from hata_sglang.evaluation.serving import started
from hata_sglang.evaluation.sparsity import Reading, reading
from hata_sglang.evaluation.tasks import TASKS, Sample

EXIT_FAILED = 2
#: One number, hidden in a novel.
TASK = "niah_single_2"
#: What is asked where the length of the context shall not matter.
SHORT_PROMPT = ({"role": "user", "content": "Tell me a story."},)


class Measurement(NamedTuple):
    """One prompt on one server: the answer, then decode speed on the same, now cached, prompt.

    Attributes
    ----------
    answer, speed : Reply
        The first reply includes the prefill of the whole prompt.
    short : Reply
        As many steps after a prompt of a few tokens.
    right : bool
        Whether `answer` has the hidden number.
    read : Reading or None
        Over `answer` and `speed`; None on a dense server.
    """

    answer: Reply
    speed: Reply
    short: Reply
    right: bool
    read: Reading | None

    @property
    def step_ms(self) -> float:
        """Median latency of a decode step, in milliseconds."""
        return median(self.speed.gaps_s) * 1e3

    @property
    def short_step_ms(self) -> float:
        """The same after a few tokens: what a step takes that has next to nothing to attend to."""
        return median(self.short.gaps_s) * 1e3

    @property
    def context_share(self) -> float:
        """Share of a step that goes into its context, 0 to 1: what it takes beyond a short one."""
        return max(0.0, 1 - self.short_step_ms / self.step_ms)


def measure(client: Client, sample: Sample, new_tokens: int) -> Measurement:
    """Ask for a hidden number, then time as many decode steps after it, and after a short prompt.

    Raises
    ------
    HataError
        If a reply is empty, or the server has hata's counters and they say that it did not decode
        sparsely.
    """
    before = client.counters()
    answer = sample.ask(client)
    speed = sample.ask(client, new_tokens + 1, ignore_eos=True)
    after = client.counters()
    short = client.chat(SHORT_PROMPT, new_tokens + 1, ignore_eos=True)
    if not (answer.times and speed.times and short.times):
        raise HataError(f"{client.base_url}: expected text, found an empty reply")
    read = reading(before, after) if before is not None and after is not None else None
    return Measurement(answer, speed, short, sample.score(answer.text) == 1, read)


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Read the demo's own flags; whatever is left is for the servers."""
    parser = argparse.ArgumentParser(
        prog="python -m hata_sglang.demo",
        description=__doc__.split("\n\n")[1],
        epilog="Other flags go to both servers.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model-path", "--model", type=Path, help="checkpoint to serve (default: the demo model)"
    )
    parser.add_argument(
        "--hata-config",
        type=Path,
        default=demo_config(),
        help="YAML for the sparse server (default: the demo model's)",
    )
    parser.add_argument(
        "--tokens", type=int, default=6000, help="length of the prompt (default 6000)"
    )
    parser.add_argument(
        "--new-tokens", type=int, default=32, help="decode steps to time (default 32)"
    )
    return parser.parse_known_args(argv)


def describe(arm: str, result: Measurement, layers: int, console: Console) -> None:
    """Print what one server answered and read."""
    verdict = "[green]right[/]" if result.right else "[red]wrong[/]"
    console.print(f"[bold]{arm}[/] answers: {result.answer.text.strip()!r}  ({verdict})")
    if result.read is not None:
        read = result.read
        console.print(
            f"{arm} read [bold]{read.attended:.0f} of {read.context:.0f}[/] tokens per step and "
            f"KV head ({read.share:.1%}) in {read.layers} of {layers} layers, "
            f"over {read.steps} steps"
        )


def comparison(hata: Measurement, dense: Measurement) -> Table:
    """Both servers side by side."""
    table = Table(title="One prompt, one request at a time, this machine")
    left = ("", "answer")
    right = ("tokens read per step", "first token, s", "step, ms", "of it context", "tokens/s")
    for name in (*left, *right):
        table.add_column(name, justify="left" if name in left else "right")
    for arm, result in (("dense", dense), ("hata", hata)):
        table.add_row(
            arm,
            "right" if result.right else "wrong",
            f"{result.read.attended:.0f}" if result.read else f"{result.speed.prompt_tokens}",
            f"{result.answer.times[0]:.1f}",
            f"{result.step_ms:.1f}",
            f"{result.context_share:.0%}",
            f"{result.speed.tokens_per_s:.1f}",
        )
    return table


def explain(hata: Measurement, dense: Measurement) -> str:
    """Say what the ratio of the speeds comes from, and what bounds it."""
    ratio = hata.speed.tokens_per_s / dense.speed.tokens_per_s
    speed = f"hata decodes at [bold]{ratio:.2f}x[/] the speed of dense.\n"
    if dense.context_share == 0:
        return (
            f"{speed}Which share of a step the context takes cannot be told: after a prompt of a "
            f"few tokens dense took no less, {dense.short_step_ms:.1f} ms. This machine is busy."
        )
    bound = 1 / (1 - dense.context_share)
    return (
        f"{speed}The context takes {dense.context_share:.0%} of a step of dense and "
        f"{hata.context_share:.0%} of one of hata: a step after a prompt of a few tokens takes "
        f"{dense.short_step_ms:.1f} and {hata.short_step_ms:.1f} ms on these servers. The rest is "
        f"the model's matrices and SGLang itself, which hata leaves alone: without a context dense "
        f"is {bound:.2f}x as fast, and this is the most that reading less of one can give."
    )


def run(argv: Sequence[str] | None, console: Console) -> None:
    """Do the whole demo; raises where it cannot."""
    args, flags = parse(argv)
    model = args.model_path or ensure_demo_model()
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    (sample,) = TASKS[TASK].samples(1, args.tokens, tokenizer, seed=5)
    layers = AutoConfig.from_pretrained(model).num_hidden_layers
    question = sample.prompt.rsplit("\n", 1)[1]
    console.print(
        f"A document of about {sample.tokens} tokens; {sample.depth:.0%} into it stands the number "
        f"that is asked for, {sample.references[0]}.\nQuestion: [bold]{question}[/]"
    )
    method = HataConfig.load(args.hata_config).method
    results = []
    for name, arm in (("hata", method), ("dense", "dense")):
        waits = f"{arm}: reading {sample.tokens} tokens, answering, then timing steps"
        server = started(arm, model, args.hata_config, flags, console)
        with server as (client, _), console.status(waits):
            results.append(measure(client, sample, args.new_tokens))
        describe(name, results[-1], layers, console)
        if name == "hata" and results[0].read is None:
            raise HataError("the run was not sparse: the server has no counters of hata")
    hata, dense = results
    console.print(comparison(hata, dense))
    console.print(explain(hata, dense))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this module; returns the exit code."""
    exit_on_sigterm()
    try:
        run(argv, Console())
    except HataError as error:
        print(f"the demo failed: {error}", file=sys.stderr)
        return EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
