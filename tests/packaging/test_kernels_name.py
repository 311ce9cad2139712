"""The folder kernels/ does not shadow the package of that name which SGLang imports.

If it did, SGLang would catch the error and quietly choose another FlashAttention: the dense
baseline of every comparison would change.
"""

import subprocess
import sys

import pytest

CODE = "import kernels, sysconfig; print(kernels.__file__); print(sysconfig.get_path('purelib'))"


@pytest.mark.parametrize("folder", ["", "kernels"])
def test_kernels_is_the_one_of_pypi(repo_root, folder):
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=repo_root / folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, site_packages = done.stdout.split()
    assert found.startswith(site_packages)


@pytest.mark.parametrize("folder", ["kernels", "weights"])
def test_folders_are_no_packages(repo_root, folder):
    assert (repo_root / folder).is_dir()
    assert not (repo_root / folder / "__init__.py").exists()
