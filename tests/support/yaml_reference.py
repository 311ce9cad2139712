"""The tables of docs/yaml.md: every key of the YAML, out of its schema, and every method.

python tests/support/yaml_reference.py    makes them
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hata_sglang.config import HataConfig, LayerOverride
from hata_sglang.methods import methods

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "yaml.md"
BEGIN = "<!-- {}: made by tests/support/yaml_reference.py -->"
END = "<!-- {} end -->"


def methods_table() -> str:
    """One line for each method of this package."""
    lines = [
        "| method | ranks by | weights | bits | what it is |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, method in methods().items():
        weights = "by `train`" if method.trained else "from `seed`" if method.seeded else ""
        bits = f"32 to {method.max_bits}" if method.coded else ""
        text = f"[{method.summary}]({method.paper})" if method.paper else method.summary
        lines.append(f"| `{name}` | {method.ranks} | {weights} | {bits} | {text} |")
    return "\n".join(lines)


def keys_table() -> str:
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
    """The document's text with today's tables."""
    for name, table in TABLES.items():
        begin, end = BEGIN.format(name), END.format(name)
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n{table()}\n{end}{after}"
    return text


TABLES = {"keys": keys_table, "methods": methods_table}


if __name__ == "__main__":
    DOCUMENT.write_text(in_document(DOCUMENT.read_text("utf-8")), encoding="utf-8")
