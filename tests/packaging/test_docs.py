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


def anchors(text: str) -> set[str]:
    """How GitHub names the headings of a document."""
    heads = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_links_lead_somewhere(repo_root: Path) -> None:
    documents = [
        *repo_root.glob("*.md"),
        *repo_root.glob("docs/*.md"),
        *repo_root.glob("l*/**/*.md"),
    ]
    assert len(documents) > 10
    for document in documents:
        text = re.sub(r"^```.*?^```$", "", document.read_text("utf-8"), flags=re.M | re.S)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            path, _, anchor = link.partition("#")
            if path.startswith("http"):
                continue
            target = (document.parent / path).resolve() if path else document
            assert target.exists(), f"{document.name}: {link}"
            if anchor:
                assert anchor in anchors(target.read_text("utf-8")), f"{document.name}: {link}"
