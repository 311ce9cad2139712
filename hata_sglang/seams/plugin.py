"""Entry point of the group ``sglang.srt.plugins``: what SGLang calls in each of its processes.

Installed but not asked for, the trace is: the accepted backend name ``hata``, the flag
``--hata-config``, and two wrapped methods of ``ServerArgs`` that let everything else through.
"""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)


def register() -> None:
    """Teach SGLang the name ``hata``; in a process of a server that asked for it, patch the seams.

    Raises
    ------
    SystemExit
        If this SGLang lacks what hata needs although the server asked for hata. (SGLang logs
        and swallows any other exception here.)
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from sglang.srt.server_args import add_attention_backend_choices

    from hata_sglang.seams import activation, hooks, versions

    add_attention_backend_choices([activation.BACKEND])
    HookRegistry.register(
        "sglang.srt.server_args.ServerArgs.add_cli_args", activation.add_cli_flag, HookType.AFTER
    )
    HookRegistry.register(versions.resolution_target(), activation.resolve, HookType.AROUND)
    if activation.is_active():
        try:
            hooks.register_all()
            activation.wrap_factories()
        except Exception as error:
            logger.exception("hata was asked for and cannot be wired into SGLang")
            raise SystemExit(2) from error
