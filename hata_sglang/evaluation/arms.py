"""The servers that are compared with each other: dense, exact top-k, HATA, random codes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import yaml

from hata_sglang.errors import HataError, Problem, Refusal
from hata_sglang.evaluation.hidden_fact import HiddenFact, Reply, ask, found
from hata_sglang.evaluation.server import ServerProcess
from hata_sglang.seams.cpu_preview import has_cuda_driver

#: `dense` is SGLang as it is; the others are values of the YAML key `method`.
ARMS = ("dense", "exact", "hata", "random")
#: YAML keys that `exact` and `random` take no part of from a file written for `hata`.
WEIGHT_KEYS = ("weights",)
CODE_KEYS = ("weights", "bits", "seed")


def demo_config() -> Path:
    """Path of the YAML for the demo model that this package ships."""
    return Path(str(files("hata_sglang") / "configs" / "demo.yaml"))


def dense_backend() -> str:
    """Name of the stock attention backend that hata is compared with on this machine."""
    return "flashinfer" if has_cuda_driver() else "torch_native"


@contextmanager
def arm_arguments(arm: str, model: str | Path, config: str | Path) -> Iterator[list[str]]:
    """Flags of ``python -m hata_sglang.launch_server`` for one arm.

    All sparse arms have the budget, sink, recent and dense layers of one file; only the method
    differs.

    Parameters
    ----------
    arm : str
        One of `ARMS`.
    model : path
        Checkpoint folder.
    config : path
        A YAML file whose method is ``hata``.

    Yields
    ------
    list of str
        They may name a temporary file, which is gone after the ``with`` block.

    Raises
    ------
    Refusal
        If `arm` is not in `ARMS`.
    """
    if arm not in ARMS:
        raise Refusal([Problem("arm", f"one of {', '.join(ARMS)}", repr(arm))])
    base = ["--model-path", str(model)]
    if arm == "dense":
        yield [*base, "--attention-backend", dense_backend()]
    elif arm == "hata":
        yield [*base, "--hata-config", str(config)]
    else:
        settings = yaml.safe_load(Path(config).read_text())
        for key in CODE_KEYS if arm == "exact" else WEIGHT_KEYS:
            settings.pop(key, None)
        with TemporaryDirectory(prefix="hata-arm-") as folder:
            path = Path(folder) / f"{arm}.yaml"
            path.write_text(yaml.safe_dump({**settings, "method": arm}, sort_keys=False))
            yield [*base, "--hata-config", str(path)]


@dataclass(frozen=True)
class Reading:
    """What one decode step reads in one sparse layer, averaged over steps.

    Attributes
    ----------
    steps : int
        Decode steps that were sparse.
    attended, context : float
        Tokens per KV head: read by attention, and in the context.
    layers : int
        Sparse layers, out of those of the model.
    """

    steps: int
    attended: float
    context: float
    layers: int

    @property
    def share(self) -> float:
        """Attended tokens over the context, 0 to 1."""
        return self.attended / self.context


def reading(before: dict[str, int], after: dict[str, int], context: int) -> Reading:
    """What was read between two snapshots of the counters, for requests of one length.

    Parameters
    ----------
    before, after : dict of str to int
        From `ServerProcess.counters`; one request at a time was decoded between them.
    context : int
        Tokens of the prompt, which tells steps and layers apart in the sums.

    Raises
    ------
    HataError
        If no step between the two was sparse.
    """
    steps, total, attended = (
        after[key] - before[key] for key in ("decode_steps", "tokens_in_context", "tokens_attended")
    )
    if steps == 0 or attended >= total:
        raise HataError(
            f"the run was not sparse: {steps} sparse steps read {attended} of {total} tokens"
        )
    # The context grows by one a step from `context` + 1 on.
    layers = round(total / steps / (context + (steps + 1) / 2))
    return Reading(steps, attended / steps / layers, total / steps / layers, layers)


@dataclass(frozen=True)
class Measurement:
    """One prompt on one server: the answer, then decode speed on the same, now cached, prompt.

    Attributes
    ----------
    answer, speed : Reply
        The first reply includes the prefill of the whole prompt.
    right : bool
        Whether `answer` has the hidden number.
    read : Reading or None
        Over both replies; None on a dense server.
    """

    answer: Reply
    speed: Reply
    right: bool
    read: Reading | None

    @property
    def step_ms(self) -> float:
        """Median latency of a decode step, in milliseconds."""
        return median(self.speed.gaps_s) * 1e3


def measure(server: ServerProcess, fact: HiddenFact, new_tokens: int = 32) -> Measurement:
    """Ask for a hidden fact, then decode `new_tokens` more steps after the same prompt.

    Parameters
    ----------
    server : ServerProcess
        Running, and serving nobody else.
    fact : HiddenFact
    new_tokens : int, default 32
        Decode steps to time.

    Raises
    ------
    HataError
        If the server has hata's counters and they say that it did not decode sparsely.
    """
    before = server.counters()
    answer = ask(server.base_url, fact.messages)
    speed = ask(server.base_url, fact.messages, max_tokens=new_tokens + 1, ignore_eos=True)
    after = server.counters()
    read = None
    if before is not None and after is not None:
        read = reading(before, after, fact.tokens)
    return Measurement(answer, speed, found(fact.answer, answer.text), read)
