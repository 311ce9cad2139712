"""Other hash weights for a server that runs: between two steps, in place, with all keys' codes.

The request comes by SGLang's ``/weights_checker``, the one of its routes that brings a text to the
scheduler without waiting for requests to end, and brings a text back.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any

import torch

from hata_sglang.errors import Problem, refuse_any
from hata_sglang.files import locate
from hata_sglang.metrics import METRICS
from hata_sglang.seams import versions
from hata_sglang.seams.session import Session
from hata_sglang.weights import read_card

logger = logging.getLogger(__name__)

#: What the ``action`` of a request begins with; the folder or shipped name of a set follows.
ACTION = "hata_weights="


def swap(runner: Any, ref: str) -> str:
    """Serve another set of hash weights from the next step on.

    The scheduler's one thread calls this between two steps. Tensors stay where they are, as CUDA
    graphs hold their addresses; codes of all slots are made again of the keys.

    Parameters
    ----------
    runner : sglang.srt.model_executor.model_runner.ModelRunner
    ref : str
        Folder or shipped name of the set.

    Returns
    -------
    str
        What was done, for people.

    Raises
    ------
    Refusal
        With every reason why the set cannot take the place of the one that is served; nothing has
        been changed then.
    """
    start = time.perf_counter()
    folder = locate(ref)
    ref = folder if os.path.isdir(folder) else ref
    served = Session.of(runner.model_config)
    session, card = served.with_weights(ref, runner.model_config), read_card(ref)
    part = session.on_rank(*versions.part_here(runner, session.shape.num_kv_heads))
    pool, decoder = runner.token_to_kv_pool, versions.decode_backend(runner).hata_decoder
    book = pool.hata_codes
    swapped = [plan.layer for plan in part.plans if plan.weights is not None]
    problems = []
    for layer in swapped:
        try:
            book.encoders[layer].expect_like(part.encoders[layer])
        except ValueError as error:
            expected = "the encoder of the set that is served, of other numbers"
            problems.append(Problem(f"weights {ref}, layer {layer}", expected, str(error)))
    refuse_any(problems)
    _wait(pool.device)  # a step may be running still, on a stream of its own
    for layer in swapped:
        book.replace(layer, part.encoders[layer], pool.layer_cache(layer).keys)
    for layer, weights in part.left_out.items():
        decoder.value_sums.weights[layer].copy_(weights)
    decoder.forget()
    _wait(pool.device)
    session.keep(runner.model_config)
    METRICS.update(weights=session.facts()["weights"])
    seconds = time.perf_counter() - start
    done = f"hata: weights {ref} in {len(swapped)} layers, all codes made again, in {seconds:.2f} s"
    if card.left_out and not part.left_out:
        done += "; without the mean of the values left out, which this server began without"
    logger.info(done)
    return done


def _wait(device: Any) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
