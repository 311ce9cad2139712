"""launch/*.sh with a pretended environment: what they install, when, and how they refuse."""

import os
import stat
import subprocess
import sys

import pytest

# Stands for the interpreter of an environment: notes each call, and answers like the real one
# where the scripts ask for versions.
FAKE_PYTHON = """#!/bin/sh
echo "python $*" >>"$CALLS"
case "$*" in
  "- "*|--version) exec {python} "$@" ;;
  *"$FAIL_ON"*) echo "pip: no space left"; exit 1 ;;
  *"-m gpu"*) echo "on $CUDA_VISIBLE_DEVICES, ${{OMP_NUM_THREADS:-all}} threads" >>"$CALLS" ;;
  *pytest*) echo "==== 3 passed in 0.1s ====" ;;
esac
"""
FAKE_SCRIPT = '#!/bin/sh\necho "hata-sglang $*" >>"$CALLS"\n'


@pytest.fixture
def launch(repo_root, tmp_path):
    """Run a script of launch/ in a copy of the repository's outer files; give result and calls."""
    copy = tmp_path / "repo"
    (copy / "launch").mkdir(parents=True)
    for name in ("_setup.sh", "demo.sh", "test.sh", "check_gpu.sh"):
        (copy / "launch" / name).write_text((repo_root / "launch" / name).read_text())
    (copy / "pyproject.toml").write_text((repo_root / "pyproject.toml").read_text())
    calls = tmp_path / "calls"

    def launch(script, *args, **environment):
        calls.write_text("")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HATA_", "OMP_"))}
        done = subprocess.run(
            ["bash", str(copy / "launch" / script), *args],
            env={**inherited, "CALLS": str(calls), "FAIL_ON": "no such words", **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done, [line.replace(str(copy), "REPO") for line in calls.read_text().splitlines()]

    launch.root = copy
    return launch


def make_environment(folder):
    (folder / "bin").mkdir(parents=True)
    for name, text in (
        ("python", FAKE_PYTHON.format(python=sys.executable)),
        ("hata-sglang", FAKE_SCRIPT),
    ):
        path = folder / "bin" / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)


def installs(calls):
    return [call.split("--progress-bar off ")[1] for call in calls if " install " in call]


def test_demo_installs_sglang_first_and_serves(launch):
    make_environment(launch.root / ".venv")
    done, calls = launch("demo.sh", "--port", "1234")
    assert done.returncode == 0, done.stderr
    assert installs(calls) == ["sglang==0.5.16", "-e REPO[test]"]
    assert calls[-2:] == [
        "hata-sglang demo-model",
        "python -m hata_sglang.launch_server --port 1234",
    ]


def test_second_run_installs_nothing(launch):
    make_environment(launch.root / ".venv")
    launch("demo.sh")
    done, calls = launch("demo.sh", "--once", "--seed", "1")
    assert calls == ["hata-sglang demo-model", "python -m hata_sglang.demo --seed 1"]
    assert "ready" in done.stdout


def test_installs_again_after_a_change(launch):
    make_environment(launch.root / ".venv")
    launch("demo.sh")
    with (launch.root / "pyproject.toml").open("a") as stream:
        stream.write("# a change\n")
    _, calls = launch("demo.sh")
    assert installs(calls) == ["sglang==0.5.16", "-e REPO[test]"]
    _, calls = launch("demo.sh", HATA_SGLANG_VERSION="0.5.23")
    assert installs(calls) == ["sglang==0.5.23", "-e REPO[test]"]


def test_failed_installation_is_shown_and_tried_again(launch):
    make_environment(launch.root / ".venv")
    done, calls = launch("demo.sh", FAIL_ON="sglang==")
    assert done.returncode == 2
    assert "pip: no space left" in done.stderr
    assert "run the same command again" in done.stderr
    assert len(installs(calls)) == 1
    _, calls = launch("demo.sh")
    assert len(installs(calls)) == 2


def test_environment_elsewhere(launch, tmp_path):
    make_environment(tmp_path / "other")
    done, calls = launch("demo.sh", HATA_VENV=str(tmp_path / "other"))
    assert done.returncode == 0, done.stderr
    assert len(installs(calls)) == 2


def test_arguments_go_to_pytest(launch):
    make_environment(launch.root / ".venv")
    done, calls = launch("test.sh", "tests/config", "-k", "a b", HATA_TEST_BOTH="1")
    assert done.returncode == 0, done.stderr
    assert calls[-1] == "python -m pytest tests/config -k a b"
    assert done.stdout.splitlines()[-1] == "==== 3 passed in 0.1s ===="


def test_both_releases(launch):
    make_environment(launch.root / ".venv")
    make_environment(launch.root / ".venv-0.5.23")
    done, calls = launch("test.sh", HATA_TEST_BOTH="1")
    assert done.returncode == 0, done.stderr
    assert [call for call in installs(calls) if "sglang==" in call] == [
        "sglang==0.5.16",
        "sglang==0.5.23",
    ]
    spread = f"-n {os.cpu_count()} --dist loadfile"
    servers = "tests/e2e tests/bench/test_serve_cpu.py"
    assert [call for call in calls if "pytest" in call] == [
        f"python -m pytest {spread} tests"
        " --ignore=tests/e2e --ignore=tests/bench/test_serve_cpu.py",
        f"python -m pytest {servers}",
        "python -m pytest tests/kernels/test_compile.py",
        f"python -m pytest {spread} tests/plugin",
        "python -m pytest tests/e2e",
    ]
    assert done.stdout.splitlines()[-5:] == ["==== 3 passed in 0.1s ===="] * 5


@pytest.mark.parametrize("fail_on", ["-m pytest", "test_compile.py", "tests/plugin"])
def test_any_suite_fails_the_script(launch, fail_on):
    make_environment(launch.root / ".venv")
    make_environment(launch.root / ".venv-0.5.23")
    done, calls = launch("test.sh", HATA_TEST_BOTH="1", FAIL_ON=fail_on)
    assert done.returncode == 1
    assert sum("pytest" in call for call in calls) == 5  # the others run all the same


@pytest.mark.parametrize(("gpus", "alone"), [("0", "0"), ("2,5,7", "7")])
def test_parts_of_the_gpu_check(launch, gpus, alone):
    make_environment(launch.root / ".venv")
    done, calls = launch(
        "check_gpu.sh", "rows.csv", CUDA_VISIBLE_DEVICES=gpus, HATA_WORKERS="7", HATA_SERVERS="3"
    )
    assert done.returncode == 0, done.stderr
    assert sum("-m gpu" in call for call in calls) == 3
    on = [call for call in calls if call.startswith("on ")]
    assert sorted(on) == [
        f"on {gpus[0]}, 1 threads",
        f"on {gpus[0]}, all threads",
        f"on {alone}, all threads",
    ]
    if gpus == "0":  # the other parts begin when it has ended
        parts = [
            line for line in done.stdout.splitlines() if "servers" in line or "kernels" in line
        ]
        assert "defaults: started on GPU 0" in parts[0]
        assert parts[1].endswith("s in all")


@pytest.mark.parametrize("fail_on", ["gpu and alone", "gpu and not alone", "tests/kernels"])
def test_any_part_fails_the_gpu_check(launch, fail_on):
    make_environment(launch.root / ".venv")
    done, calls = launch("check_gpu.sh", CUDA_VISIBLE_DEVICES="0", FAIL_ON=fail_on)
    assert done.returncode == 1
    assert "no space left" in done.stdout  # what failed is shown
    assert sum("pytest" in call for call in calls) == 3  # the others run all the same


def test_no_python_fits(launch, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname", "cat", "sha256sum", "cut", "df", "awk", "head"):
        (tools / tool).symlink_to(f"/usr/bin/{tool}")
    done, calls = launch("demo.sh", PATH=str(tools))
    assert done.returncode == 2
    assert "no Python that fits SGLang 0.5.16 was found on PATH" in done.stderr
    assert "sudo apt install" in done.stderr
    assert "HATA_PYTHON=" in done.stderr
    assert calls == []


def test_named_python_does_not_fit(launch):
    done, _ = launch("demo.sh", HATA_PYTHON="/bin/false")
    assert done.returncode == 2
    assert "HATA_PYTHON: expected Python 3.10 to 3.13" in done.stderr
    assert "found /bin/false" in done.stderr


def test_full_disk(launch, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "df").write_text("#!/bin/sh\necho head\necho /dev/x 100 1 5000000 1% /\n")
    (tools / "df").chmod(0o755)
    done, calls = launch("demo.sh", PATH=f"{tools}:{os.environ['PATH']}")
    assert done.returncode == 2
    assert "disk: expected 12 GB free for" in done.stderr
    assert "found 5 GB" in done.stderr
    assert "HATA_VENV=" in done.stderr
    assert calls == []


def test_ci_runs_both(repo_root):
    text = (repo_root / ".ci" / "run").read_text()
    assert "HATA_TEST_BOTH=1 exec bash launch/test.sh" in text
    assert os.access(repo_root / ".ci" / "run", os.X_OK)
