"""From the backend name ``hata`` to an inner backend with hata attached.

SGLang treats many things by the backend's name (graph support, page sizes, allow-lists), so the
name ``hata`` lives only until SGLang resolves its arguments. From then on the arguments carry the
inner backend's name, and hata's configuration (`hata_sglang.seams.session.carry`), as it was read
when they were resolved: a file that changes later changes nothing.
"""

from __future__ import annotations

import argparse
import logging
import os
from typing import Any

from hata_sglang.errors import HataError, Refusal
from hata_sglang.seams import cpu_preview, refusing, versions
from hata_sglang.seams.session import Session

logger = logging.getLogger(__name__)

BACKEND = "hata"
FLAG = "--hata-config"
#: Path of the YAML where the flag does not name it.
CONFIG_ENV = "HATA_CONFIG"
#: "1" once a server of this process asked for hata. Processes that it spawns patch SGLang then, and
#: look for each server's configuration; others leave SGLang as it is.
ACTIVE_ENV = "HATA_SGLANG_ACTIVE"


class _Flag:
    """What `FLAG` named. SGLang's own arguments have no room for it."""

    path: str | None = None

    @classmethod
    def read(cls, path: str) -> str:
        """Type of the argument, for argparse."""
        cls.path = os.path.abspath(path)
        return cls.path

    @classmethod
    def take(cls) -> str | None:
        """The path, once: the arguments that are resolved next are those that were read with it."""
        path, cls.path = cls.path, None
        return path


def add_cli_flag(result: Any, parser: argparse.ArgumentParser) -> None:
    """After SGLang's own flags: add ``--hata-config``."""
    refusing.note_command_line()
    parser.add_argument(
        FLAG,
        metavar="FILE",
        type=_Flag.read,
        default=argparse.SUPPRESS,
        help="YAML of the attention backend 'hata': method, bits, weights, budgets per layer.",
    )


def resolve(original, server_args: Any, *args: Any, **kwargs: Any) -> Any:
    """Around SGLang's resolution of its arguments: swap the name, then check the outcome.

    A server that did not ask for hata passes through untouched.
    """
    if versions.already_resolved(server_args):
        return original(server_args, *args, **kwargs)
    named, asked = _Flag.take(), _asked(server_args)
    if BACKEND not in asked and named is None:
        return original(server_args, *args, **kwargs)
    cpu_preview.enable()
    from hata_sglang.seams.hooks import require_places
    from hata_sglang.seams.validate import check_asked, check_resolved

    try:
        if BACKEND not in asked:
            found = next((name for name in asked if name), "none")
            raise Refusal.of("--attention-backend", f"{BACKEND}, because of {FLAG}", found)
        config = check_asked(server_args, named or os.environ.get(CONFIG_ENV))
        _swap_names(server_args, config.inner_backend)
        os.environ[ACTIVE_ENV] = "1"
        result = original(server_args, *args, **kwargs)
        session = check_resolved(server_args)
        require_places()
    except HataError as error:
        refusing.refuse(error)
    logger.info(
        "hata: %d of %d layers decode sparse", len(session.sparse_plans), len(session.plans)
    )
    return result


def _asked(server_args: Any) -> tuple[str | None, ...]:
    return tuple(
        getattr(server_args, name, None)
        for name in ("attention_backend", "decode_attention_backend", "prefill_attention_backend")
    )


def _swap_names(server_args: Any, inner: str | None) -> None:
    """Replace ``hata`` by the inner backend's name, None where SGLang shall choose."""
    if inner == "auto":
        on_cpu = server_args.device == "cpu" or not cpu_preview.has_cuda_driver()
        inner = "torch_native" if on_cpu else None
    for name in ("attention_backend", "decode_attention_backend"):
        if getattr(server_args, name) == BACKEND:
            setattr(server_args, name, inner)


def is_active() -> bool:
    """Say whether this process may belong to a server that asked for hata."""
    return os.environ.get(ACTIVE_ENV) == "1"


def wrap_factories() -> None:
    """Make the inner backends' factories attach hata to the decode backend they build."""
    from sglang.srt.layers.attention.attention_registry import (
        ATTENTION_BACKENDS,
        register_attention_backend,
    )

    from hata_sglang.seams.validate import INNER_BACKENDS

    for name in INNER_BACKENDS:
        register_attention_backend(name)(_attaching(name, ATTENTION_BACKENDS[name]))


def _attaching(name: str, stock):
    def factory(runner):
        backend = stock(runner)
        session = Session.of_rank(runner)
        if (
            session is None
            or runner.is_draft_worker
            or versions.decode_backend_name(runner) != name
        ):
            return backend
        from hata_sglang.seams.backend import attach
        from hata_sglang.seams.hooks import require_applied
        from hata_sglang.seams.validate import check_runner

        require_applied()
        check_runner(runner, session)
        attach(backend, runner, session)
        facts = session.facts()
        logger.info(
            "hata is on: method %s, %s bits, layers %s of %d decode sparse, budget %s, beside %s",
            *(facts[key] for key in ("method", "bits", "layers", "num_layers", "budget")),
            name,
        )
        return backend

    return factory
