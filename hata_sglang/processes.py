"""Child processes that have a session of their own, and so end with all that they started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess

#: Seconds between asking a process to end (SIGTERM) and forcing it (SIGKILL).
GRACE_S = 15.0


def end_group(process: subprocess.Popen, grace: float = GRACE_S) -> None:
    """End a process and everything it spawned; returns when the process is gone.

    Parameters
    ----------
    process : subprocess.Popen
        Started with ``start_new_session=True``. It may have ended by itself.
    grace : float, default GRACE_S
        Seconds between asking and forcing.
    """
    _signal(process, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace)
    # Children of a process that ended by itself would stay behind: the group, not the leader.
    _signal(process, signal.SIGKILL)
    process.wait()


def _signal(leader: subprocess.Popen, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # the whole group is gone
        os.killpg(leader.pid, number)
