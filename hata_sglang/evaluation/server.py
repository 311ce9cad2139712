"""A server as a child process: started, waited for, and ended with all its children."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hata_sglang.errors import HataError
from hata_sglang.evaluation.client import Client
from hata_sglang.processes import end_group

HOST = "127.0.0.1"
LOG_TAIL_LINES = 40


def free_port() -> int:
    """A TCP port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def exit_on_sigterm() -> None:
    """Let SIGTERM end this program like Ctrl-C does: through ``with`` blocks, servers included."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


class ServerProcess:
    """Run a server for the length of a ``with`` block.

    The process gets a session of its own, so that ending it reaches the processes it spawned and
    none else.

    Parameters
    ----------
    arguments : sequence of str
        Flags of the server, without host and port.
    module : str, default "hata_sglang.launch_server"
        Run as ``python -m module`` with this Python.
    command : sequence of str, optional
        Run this instead of ``python -m module``. Default: None.
    env : mapping, optional
        Set on top of this process's environment. Default: nothing.
    log : path, optional
        Gets standard output and error. Default: a temporary file, deleted if all went well.
    timeout : float, default 900
        Seconds that the server may take to start.
    on_wait : callable, optional
        Called every tenth of a second while the server starts, with the seconds so far.

    Attributes
    ----------
    base_url : str
        ``http://127.0.0.1:<port>``.
    client : Client
        For requests to it.
    log_path : Path
        Where the server's output goes; None before the start if it is a temporary file.
    process : subprocess.Popen

    Raises
    ------
    HataError
        On entry, if the process ends or `timeout` passes before it is ready.

    Examples
    --------
    >>> with ServerProcess(["--attention-backend", "hata"]) as server:  # doctest: +SKIP
    ...     server.client.chat([{"role": "user", "content": "Hello"}], max_tokens=20)
    """

    def __init__(
        self,
        arguments: Sequence[str] = (),
        *,
        module: str = "hata_sglang.launch_server",
        command: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        log: str | Path | None = None,
        timeout: float = 900.0,
        on_wait: Callable[[float], object] = lambda _: None,
    ) -> None:
        self.port = free_port()
        start = list(command) if command is not None else [sys.executable, "-m", module]
        self.command = [*start, *arguments, "--host", HOST, "--port", str(self.port)]
        self.env = {**os.environ, **(env or {})}
        self.base_url = f"http://{HOST}:{self.port}"
        self.client = Client(self.base_url)
        self.timeout = timeout
        self.on_wait = on_wait
        self._keeps_log = log is not None
        self.log_path = None if log is None else Path(log)

    def __enter__(self) -> ServerProcess:
        if self.log_path is None:
            handle, name = tempfile.mkstemp(prefix="hata-server-", suffix=".log")
            os.close(handle)
            self.log_path = Path(name)
        with self.log_path.open("wb") as stream:
            self.process = subprocess.Popen(
                self.command,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stop()
        if not self._keeps_log and kind is None:
            self.log_path.unlink()

    def _wait(self) -> None:
        start = time.monotonic()
        while not self.client.ready():
            waited, code = time.monotonic() - start, self.process.poll()
            if code is not None or waited > self.timeout:
                found = f"ended with exit code {code}"
                if code is None:
                    found = f"was not ready after {self.timeout:g} s"
                log = self.log_path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
                raise HataError(
                    "\n".join([f"the server {found}. The end of {self.log_path}:", *log])
                )
            self.on_wait(waited)
            time.sleep(0.1)

    def stop(self) -> None:
        """End the server and everything it spawned; returns when the server is gone."""
        end_group(self.process)
