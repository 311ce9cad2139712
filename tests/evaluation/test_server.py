import os
import socket
import time
import urllib.request

import pytest

from hata_sglang.errors import HataError
from hata_sglang.evaluation.server import ServerProcess, free_port

COUNTERS = '{"decode_steps": 3, "tokens_in_context": 60, "tokens_attended": 6, "tokens_encoded": 9}'


def is_running(pid: int) -> bool:
    """Whether the process is there and not merely waiting to be reaped."""
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 5
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)


def test_serves_within_the_block_and_not_after(fake_server):
    with ServerProcess(command=fake_server) as server:
        with urllib.request.urlopen(server.base_url + "/health") as response:
            assert response.status == 200
        assert is_running(server.process.pid)
        assert os.getsid(server.process.pid) == server.process.pid
    assert not is_running(server.process.pid)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=5)


def test_waits_until_health_says_ready(fake_server):
    waits = []
    with ServerProcess(["--busy-for", "0.3"], command=fake_server, on_wait=waits.append):
        assert waits
        assert waits == sorted(waits)


def test_spawned_processes_end_with_it(fake_server, tmp_path):
    pid_file = tmp_path / "child"
    with ServerProcess(["--child-pid-file", str(pid_file)], command=fake_server):
        child = int(pid_file.read_text())
        assert is_running(child)
    wait_until_gone(child)
    assert not is_running(child)


def test_children_of_a_server_that_died_end_too(fake_server, tmp_path):
    pid_file = tmp_path / "child"
    flags = ["--child-pid-file", str(pid_file), "--exit-code", "1"]
    with pytest.raises(HataError), ServerProcess(flags, command=fake_server):
        pass
    child = int(pid_file.read_text())
    wait_until_gone(child)
    assert not is_running(child)


def test_a_failure_in_the_block_ends_the_server_and_keeps_the_log(fake_server):
    server = ServerProcess(command=fake_server)
    with pytest.raises(KeyError), server:
        raise KeyError("of the test")
    assert not is_running(server.process.pid)
    assert server.log_path.exists()
    server.log_path.unlink()


def test_early_exit_shows_code_and_log(fake_server, tmp_path):
    server = ServerProcess(["--exit-code", "3"], command=fake_server, log=tmp_path / "log")
    with pytest.raises(HataError, match=r"exit code 3(?s:.*)last words of the server"), server:
        pass


def test_too_slow_is_an_error_and_ends_it(fake_server, tmp_path):
    server = ServerProcess(["--deaf"], command=fake_server, log=tmp_path / "log", timeout=0.3)
    late = r"not ready after 0\.3 s(?s:.*)reading no setting"
    with pytest.raises(HataError, match=late), server:
        pass
    assert not is_running(server.process.pid)


def test_log_and_environment(fake_server, tmp_path):
    log = tmp_path / "log"
    with ServerProcess(command=fake_server, log=log, env={"FAKE_SETTING": "mine"}) as server:
        assert log.read_text() == "reading mine\n"
    assert log.exists()
    with ServerProcess(command=fake_server) as server:
        own = server.log_path
        assert own.exists()
    assert not own.exists()


@pytest.mark.parametrize(("flags", "expected"), [([], None), (["--counters", COUNTERS], 9)])
def test_counters(fake_server, flags, expected):
    with ServerProcess(flags, command=fake_server) as server:
        counters = server.client.counters()
    assert (counters and counters["tokens_encoded"]) == expected


def test_default_command_is_the_launcher():
    server = ServerProcess(["--flag"])
    assert server.command[1:] == [
        "-m",
        "hata_sglang.launch_server",
        "--flag",
        "--host",
        "127.0.0.1",
        "--port",
        str(server.port),
    ]


def test_free_port_can_be_bound():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))
