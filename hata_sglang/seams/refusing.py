"""How a refusal reaches whoever started SGLang: a command line, or a script with an Engine.

SGLang swallows exceptions while it loads plugins, not those of a hooked method of `ServerArgs`,
where hata refuses: they reach the caller in every supported release.
"""

from __future__ import annotations

import sys
from typing import NoReturn

from hata_sglang.errors import HataError

_from_command_line = False


def note_command_line() -> None:
    """Remember that SGLang's command line is being parsed in this process."""
    global _from_command_line
    _from_command_line = True


def refuse(error: HataError) -> NoReturn:
    """Tell why hata cannot run.

    Parameters
    ----------
    error : HataError

    Raises
    ------
    SystemExit
        With code 2, after the message on standard error, under a launcher: people read it there.
    HataError
        `error` itself, where a script makes a ``sglang.Engine``: it may want to catch it.
    """
    if not _from_command_line:
        raise error
    print(error, file=sys.stderr, flush=True)
    raise SystemExit(2) from error
