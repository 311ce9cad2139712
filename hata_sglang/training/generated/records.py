"""Records as programs write them: JSON, logs, tables, SQL and stack traces over the same ids."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

Record = dict[str, Any]


def document(rng: random.Random, words: dict[str, Any], characters: int) -> str:
    """Make one document: sections of several forms over the ids of one domain.

    Later sections name records of earlier ones, so that reading them means looking those up.

    Parameters
    ----------
    rng : random.Random
    words : dict
        A split's part of ``records`` in ``data/wording.yaml``.
    characters : int
        Of the document, at least.
    """
    domain = words["domains"][rng.randrange(len(words["domains"]))]
    forms = {"json": _json, "log": _log, "table": _table, "sql": _sql, "trace": _trace}
    known: list[Record] = []
    parts: list[str] = []
    size = 0
    while size < characters:
        # The first two sections make records, so that a log has something to tell of.
        form = rng.choice(list(forms)) if len(parts) > 1 else ("json", "table")[len(parts)]
        body = forms[form](rng, words, domain, known)
        heading = words["headings"][form].format(name=domain["name"], number=len(parts) + 1)
        parts.append(f"{heading}\n\n{body}")
        size += len(parts[-1]) + 2
    return "\n\n".join(parts)


def _records(rng: random.Random, domain: dict[str, Any], known: list[Record], count: int) -> list:
    made = []
    for _ in range(count):
        row = {domain["key"]: f"{domain['prefix']}{rng.randrange(10**6):06d}"}
        row |= {name: _value(rng, spec, known) for name, spec in domain["fields"].items()}
        made.append(row)
        known.append(row)
    return made


def _value(rng: random.Random, spec: Any, known: list[Record]) -> Any:
    """One field: of a list an entry, of a dict a nested record, else what the word says."""
    if isinstance(spec, list):
        return spec[rng.randrange(len(spec))]
    if isinstance(spec, dict):
        return {name: _value(rng, inner, known) for name, inner in spec.items()}
    word, *limits = spec.split()
    makers: dict[str, Callable[[], Any]] = {
        "int": lambda: rng.randint(int(limits[0]), int(limits[1])),
        "money": lambda: rng.randint(int(limits[0]) * 100, int(limits[1]) * 100) / 100,
        "hex": lambda: f"{rng.getrandbits(4 * int(limits[0])):0{int(limits[0])}x}",
        "address": lambda: ".".join(str(rng.randint(1, 254)) for _ in range(4)),
        "day": lambda: f"20{rng.randint(18, 25)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}",
        "flag": lambda: rng.random() < 0.5,
        "earlier": lambda: next(iter(known[rng.randrange(len(known))].values())) if known else None,
    }
    return makers[word]()


def _flat(row: Record, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}_")
        else:
            yield f"{before}{name}", value


def _json(rng: random.Random, words: dict, domain: dict, known: list[Record]) -> str:
    rows = _records(rng, domain, known, rng.randint(6, 14))
    if words["indent"]:
        return json.dumps({domain["name"]: rows}, indent=words["indent"], ensure_ascii=False)
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def _table(rng: random.Random, words: dict, domain: dict, known: list[Record]) -> str:
    rows = [dict(_flat(row)) for row in _records(rng, domain, known, rng.randint(12, 30))]
    lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    if rng.random() < 0.5:
        return "\n".join(words["separator"].join(line) for line in lines)
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _sql(rng: random.Random, words: dict, domain: dict, known: list[Record]) -> str:
    rows = [dict(_flat(row)) for row in _records(rng, domain, known, rng.randint(8, 20))]
    table, key = domain["name"], domain["key"]
    types = {str: "text", int: "integer", float: "numeric", bool: "boolean", type(None): "text"}
    columns = ",\n    ".join(f"{name} {types[type(value)]}" for name, value in rows[0].items())
    lines = [words["create"].format(table=table, columns=columns, key=key)]
    for row in rows:
        values = ", ".join(_literal(value) for value in row.values())
        lines.append(words["insert"].format(table=table, columns=", ".join(row), values=values))
    for _ in range(rng.randint(3, 8)):  # changes of what stands further up
        row = known[rng.randrange(len(known))]
        name, value = list(_flat(rows[rng.randrange(len(rows))]))[-1]
        change = {"table": table, "column": name, "value": _literal(value), "key": key}
        lines.append(words["update"].format(id=row[key], **change))
    return "\n".join(lines)


def _literal(value: Any) -> str:
    if isinstance(value, str):
        quoted = value.replace("'", "''")
        return f"'{quoted}'"
    return "NULL" if value is None else str(value).lower()


def _log(rng: random.Random, words: dict, domain: dict, known: list[Record]) -> str:
    seconds = rng.randrange(60_000)
    recent = [known[rng.randrange(len(known))] for _ in range(6)]  # ids that come again and again
    lines = []
    for _ in range(rng.randint(25, 60)):
        seconds += rng.randrange(1, 20)
        values = dict(_flat(recent[rng.randrange(6)]))
        message = rng.choice(domain["events"]).format(id=values[domain["key"]], **values)
        lines.append(
            words["line"].format(
                clock=f"{seconds // 3600 % 24:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}",
                milli=f"{rng.randrange(1000):03d}",
                level=rng.choice(words["levels"]),
                part=rng.choice(domain["parts"]),
                number=rng.randint(100, 32000),
                message=message,
            )
        )
    return "\n".join(lines)


def _trace(rng: random.Random, words: dict, domain: dict, known: list[Record]) -> str:
    traces = []
    for _ in range(rng.randint(1, 3)):
        row = known[rng.randrange(len(known))]
        error = rng.choice(words["errors"]).format(id=row[domain["key"]])
        lines = [words["trace"].format(error=error)]
        for _ in range(rng.randint(4, 9)):
            part, step, call = rng.choice(domain["parts"]), *rng.sample(words["steps"], 2)
            place = {"part": part.replace("-", "_"), "line": rng.randint(10, 900)}
            lines.append(words["frame"].format(step=step, call=call, **place))
        # Python tells the error last, Java first.
        traces.append("\n".join(lines if "{error}" in words["trace"] else [*lines, error]))
    return "\n\n".join(traces)
