"""The tables of docs/yaml.md: every key of the YAML, out of its schema.

python tests/support/yaml_reference.py    makes them
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hata_sglang.config import HataConfig, LayerOverride

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "yaml.md"
BEGIN, END = "<!-- keys: made by tests/support/yaml_reference.py -->", "<!-- keys end -->"


def table() -> str:
    """One line for each key: what it takes, its default, and whether a layer may have its own."""
    lines = ["| key | takes | default | per layer |", "| --- | --- | --- | --- |"]
    for key, field in HataConfig.model_fields.items():
        default = (
            "required"
            if field.is_required()
            else _words(field.get_default(call_default_factory=True))
        )
        own = "yes" if key in LayerOverride.model_fields else ""
        lines.append(f"| `{key}` | {field.description} | {default} | {own} |")
    for key, field in LayerOverride.model_fields.items():
        if key not in HataConfig.model_fields:
            lines.append(f"| `{key}` | {field.description} | | only |")
    return "\n".join(lines)


def _words(default: Any) -> str:
    if default is None or default == {}:
        return ""
    return f"`{list(default) if isinstance(default, tuple) else default}`"


def in_document(text: str) -> str:
    """The document's text with today's table."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(in_document(DOCUMENT.read_text("utf-8")), encoding="utf-8")
