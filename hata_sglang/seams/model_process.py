"""A model that SGLang runs in a process of its own, to look at its attention.

The process ends with all that SGLang keeps in one: its groups, its memory, its settings.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hata_sglang.errors import HataError
from hata_sglang.seams.recording import Recording, record

#: Lines of the process's output that an error shows.
SHOWN_LINES = 12


class Job(NamedTuple):
    """One sequence to run.

    Attributes
    ----------
    tokens : sequence of int
    positions : torch.Tensor
        Int64 ``[N]``, rising, whose queries are wanted.
    write : callable
        Called in the process, as ``write(layer, recording)`` for each layer; can be pickled.
    values : bool
        Whether v is wanted, too.
    """

    tokens: Sequence[int]
    positions: torch.Tensor
    write: Callable[[int, Recording], None]
    values: bool = True


class ModelProcess:
    """Runs sequences through a model; a context manager, which ends the process.

    Parameters
    ----------
    model_dir : Path
        Hugging Face checkpoint.
    device : str
        ``cpu`` or ``cuda``.
    max_tokens : int
        Of the longest sequence.
    arguments : sequence of str
        More of SGLang's server arguments, such as ``--quantization``.

    Raises
    ------
    HataError
        If SGLang cannot load the model; with the last lines that it printed.
    """

    def __init__(
        self, model_dir: Path, device: str, max_tokens: int, arguments: Sequence[str] = ()
    ) -> None:
        self.log = Path(tempfile.mkstemp(prefix="hata-model-", suffix=".log")[1])
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        told = (theirs, str(model_dir), device, max_tokens, list(arguments), str(self.log))
        self._process = context.Process(target=_serve, args=told, daemon=True)
        self._process.start()
        theirs.close()

    def run(self, jobs: Sequence[Job], layers: Collection[int]) -> Iterator[int]:
        """Run sequences one after the other.

        Parameters
        ----------
        jobs : sequence of Job
        layers : collection of int
            That are recorded.

        Yields
        ------
        int
            Number of sequences done.

        Raises
        ------
        HataError
            If the process failed; what it said, or the last lines that it printed.
        """
        for count, job in enumerate(jobs, 1):
            try:
                self._pipe.send((job, tuple(layers)))
                problem = self._pipe.recv()
            except (EOFError, OSError):
                problem = self._last_lines()
            if problem is not None:
                raise HataError(problem)
            yield count

    def _last_lines(self) -> str:
        lines = self.log.read_text("utf-8", "replace").splitlines()[-SHOWN_LINES:]
        return "\n  ".join(["model: expected SGLang to run it, found its process ended:", *lines])

    def __enter__(self) -> ModelProcess:
        return self

    def __exit__(self, *_: object) -> None:
        # It ends by itself when nobody is at the other end, unless it is in a long sequence.
        self._pipe.close()
        self._process.join(timeout=10)
        self._process.kill()
        self.log.unlink(missing_ok=True)


def _serve(
    pipe: Any, model_dir: str, device: str, max_tokens: int, arguments: list[str], log: str
) -> None:
    """The process: load the model, then run what the pipe brings."""
    out = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(out, stream)
    runner = _load(model_dir, device, max_tokens, arguments)
    from hata_sglang.seams.layers import check_layers

    while True:
        try:
            job, layers = pipe.recv()
        except EOFError:
            return
        try:
            check_layers(runner.model, layers)
            found = record(runner, job.tokens, job.positions, layers, job.values)
            for layer, recording in found.items():
                job.write(layer, recording)
        except (HataError, OSError) as error:
            pipe.send(str(error))
        else:
            pipe.send(None)


def _load(model_dir: str, device: str, max_tokens: int, more: list[str]) -> Any:
    from hata_sglang.seams import cpu_preview

    cpu_preview.enable()
    from sglang.srt.server_args import prepare_server_args

    from hata_sglang.seams import versions

    arguments = ["--model-path", model_dir, "--device", device, "--disable-radix-cache"]
    arguments += ["--max-total-tokens", str(max_tokens + 64), "--max-running-requests", "1"]
    arguments += [f"--cuda-graph-backend-{phase}=disabled" for phase in ("decode", "prefill")]
    if device == "cpu":
        arguments += ["--attention-backend", "torch_native"]
    return versions.load_runner(prepare_server_args(arguments + more))
