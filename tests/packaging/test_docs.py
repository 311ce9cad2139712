"""What the documents show runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path


def test_kernels_without_sglang(repo_root: Path) -> None:
    text = (repo_root / "docs" / "kernels.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    code += "import sys\nassert 'sglang' not in sys.modules\nprint(*out.shape, *slots.shape)\n"
    where = {"PYTHONPATH": str(repo_root / "kernels")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=where, cwd="/", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "32", "128", "1", "8", "512"]
