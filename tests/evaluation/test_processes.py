import os
import signal
import subprocess
import sys

import pytest

from hata_sglang.processes import end_group

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""


def start(code: str) -> subprocess.Popen:
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def test_a_process_that_ends_when_asked_is_not_forced():
    with start("print('ready', flush=True); import time; time.sleep(600)") as process:
        assert process.stdout.readline() == "ready\n"
        end_group(process)
        assert process.returncode == -signal.SIGTERM


def test_a_process_that_ignores_being_asked_is_forced():
    with start(STUBBORN) as process:
        assert process.stdout.readline() == "ready\n"
        end_group(process, grace=0.3)
        assert process.returncode == -signal.SIGKILL


def test_a_group_that_is_gone_is_no_error():
    with start("raise SystemExit(3)") as process:
        process.wait()
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
        end_group(process)
        assert process.returncode == 3
