"""From the backend name ``hata`` to an inner backend with hata attached.

SGLang treats many things by the backend's name (graph support, page sizes, allow-lists), so the
name ``hata`` lives only until SGLang resolves its arguments. From then on the arguments carry the
inner backend's name, and the environment variable `ACTIVE_ENV` tells this server's processes that
hata was asked for.
"""

from __future__ import annotations

import argparse
import logging
import os
from typing import Any

from hata_sglang.errors import HataError
from hata_sglang.seams import cpu_preview, refusing, versions
from hata_sglang.seams.session import ACTIVE_ENV, CONFIG_ENV, Session

logger = logging.getLogger(__name__)

BACKEND = "hata"


class _ConfigFlag(argparse.Action):
    """``--hata-config FILE``: goes to the environment, where spawned processes find it."""

    def __call__(self, parser, namespace, values, option_string=None):
        os.environ[CONFIG_ENV] = os.path.abspath(values)


def add_cli_flag(result: Any, parser: argparse.ArgumentParser) -> None:
    """After SGLang's own flags: add ``--hata-config``."""
    refusing.note_command_line()
    parser.add_argument(
        "--hata-config",
        metavar="FILE",
        action=_ConfigFlag,
        default=argparse.SUPPRESS,
        help="YAML of the attention backend 'hata': method, bits, weights, budgets per layer.",
    )


def resolve(original, server_args: Any, *args: Any, **kwargs: Any) -> Any:
    """Around SGLang's resolution of its arguments: swap the name, then check the outcome.

    A server that did not ask for hata passes through untouched.
    """
    if versions.already_resolved(server_args):
        return original(server_args, *args, **kwargs)
    if BACKEND not in _asked(server_args):
        os.environ.pop(ACTIVE_ENV, None)
        return original(server_args, *args, **kwargs)
    cpu_preview.enable()
    from hata_sglang.seams.validate import check_asked, check_resolved

    try:
        inner = check_asked(server_args).inner_backend
        _swap_names(server_args, inner)
        os.environ[ACTIVE_ENV] = "1"
        result = original(server_args, *args, **kwargs)
        session = check_resolved(server_args)
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
    """Say whether this process belongs to a server that asked for hata."""
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
        if runner.is_draft_worker or versions.decode_backend_name(runner) != name:
            return backend
        from hata_sglang.seams.backend import attach
        from hata_sglang.seams.hooks import require_applied
        from hata_sglang.seams.validate import check_runner

        require_applied()
        session: Session = check_runner(runner)
        return attach(backend, runner, session)

    return factory
