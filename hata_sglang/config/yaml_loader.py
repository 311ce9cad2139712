"""PyYAML's safe loader with YAML 1.2's values and with bounds.

Values are what YAML 1.2 says (its core schema), where PyYAML follows YAML 1.1: ``1e-3`` is a
number, ``0400`` is 400, and ``4:16``, ``yes`` or ``2020-01-01`` are words. Of YAML 1.1 merge keys
(``<<``) remain. Work is bounded by the size of the file, its depth and the number of its values,
where an alias counts as many as it stands for.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from hata_sglang.errors import Refusal

KeyPath = tuple[str, ...]

#: Larger than any configuration; pure Python reads so much in a few seconds.
MAX_BYTES = 2**18
#: Keys and values; a model of 100 layers with five settings each has 1,200.
MAX_VALUES = 30_000
#: The deepest key there is, ``layers.2-15.budget.ratio``, has four levels.
MAX_DEPTH = 20
#: Numbers that count anything have ten digits, and Python reads no more than 4,300.
MAX_DIGITS = 40

_TAG = "tag:yaml.org,2002:"
_MERGE = _TAG + "merge"
# YAML 1.2.2, 10.3.2. In this order: whatever looks like an integer looks like a float, too.
_SCALARS = {
    _TAG + "null": re.compile(r"(~|null|Null|NULL|)\Z"),
    _TAG + "bool": re.compile(r"(true|True|TRUE|false|False|FALSE)\Z"),
    _TAG + "int": re.compile(r"([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z"),
    _TAG + "float": re.compile(
        r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z"
    ),
}
# Half of a character of UTF-16, which an escape such as "\ud800" can give.
_HALF = re.compile("[\ud800-\udfff]")


class _Loader(yaml.SafeLoader):
    """SafeLoader of YAML 1.2's scalars, with bounds, key lines and duplicate keys.

    PyYAML drops duplicate keys silently. Keys are the words of the file: ``true:`` is "true".
    """

    # Looked up by PyYAML: what a plain scalar is, and how a value of each tag is made.
    yaml_implicit_resolvers = {None: [*_SCALARS.items(), (_MERGE, re.compile(r"<<\Z"))]}  # noqa: RUF012

    def __init__(self, stream: str, path: Path) -> None:
        super().__init__(stream)
        self.path = path
        self.lines: dict[KeyPath, int] = {}
        self.duplicates: list[tuple[KeyPath, int, int]] = []
        self.depth = self.values = 0
        self.sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        """Compose a node, if it keeps the file within its bounds."""
        event = self.peek_event()
        before = self.values
        if isinstance(event, yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if node not in self.sizes:
                found = f"*{event.anchor} inside what it stands for"
                raise _refusal(self.path, event.start_mark, "values that end", found)
            self.values += self.sizes[node]
        else:
            # A tag is looked at first: its prefix may be long, and every value could have it.
            if event.tag not in self.yaml_constructors and event.tag not in (None, "!"):
                expected = "no tag but those of YAML 1.2's core schema"
                raise _refusal(self.path, event.start_mark, expected, event.tag.replace(_TAG, "!!"))
            self.depth += 1
            self.values += 1
            if self.depth > MAX_DEPTH:
                raise _refusal(self.path, event.start_mark, f"at most {MAX_DEPTH} levels", "more")
            node = super().compose_node(parent, index)
            if isinstance(node, yaml.ScalarNode) and _HALF.search(node.value):
                raise _refusal(self.path, event.start_mark, "whole characters", repr(node.value))
            self.depth -= 1
            self.sizes[node] = self.values - before
        if self.values > MAX_VALUES:
            expected = f"at most {MAX_VALUES:,} keys and values (an alias counts in full)"
            raise _refusal(self.path, event.start_mark, expected, "more")
        return node

    def note(self, node: yaml.Node, path: KeyPath) -> None:
        """Keep the lines of the keys below `node`, and the duplicates among them."""
        if not isinstance(node, yaml.MappingNode):
            return
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE or not isinstance(key_node, yaml.ScalarNode):
                continue
            key = (*path, key_node.value)
            # The last value of a duplicate key is the one that counts, so its line does too.
            self.lines[key] = line = key_node.start_mark.line + 1
            if key_node.value in first:
                self.duplicates.append((key, first[key_node.value], line))
            first.setdefault(key_node.value, line)
            self.note(value_node, key)

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[str, Any]:
        """Make a dict whose keys are as the file spells them."""
        if not isinstance(node, yaml.MappingNode):
            return super().construct_mapping(node, deep)  # which raises
        self.flatten_mapping(node)
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _refusal(
                    self.path, key_node.start_mark, "a word as a key", f"a {key_node.id}"
                )
        return {key.value: self.construct_object(value, deep) for key, value in node.value}

    def construct_plain(self, node: yaml.Node) -> int | float | bool | None:
        """Make null, true, false or a number of a scalar."""
        text, kind = self.construct_scalar(node), node.tag.removeprefix(_TAG)
        if not _SCALARS[node.tag].match(text):
            raise _refusal(self.path, node.start_mark, f"a value of its tag !!{kind}", repr(text))
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == "float":
            return float(re.sub(r"\.(?=[in])", "", text.lower()))
        if len(text) > MAX_DIGITS:
            expected = f"an integer of at most {MAX_DIGITS} digits"
            raise _refusal(self.path, node.start_mark, expected, f"one of {len(text):,}")
        return int(text, {"0x": 16, "0o": 8}.get(text[:2], 10))

    yaml_constructors = {  # noqa: RUF012
        **dict.fromkeys(_SCALARS, construct_plain),
        _TAG + "str": yaml.SafeLoader.construct_yaml_str,
        _TAG + "seq": yaml.SafeLoader.construct_yaml_seq,
        _TAG + "map": yaml.SafeLoader.construct_yaml_map,
    }


def load_document(
    text: str, path: Path
) -> tuple[Any, dict[KeyPath, int], list[tuple[KeyPath, int, int]]]:
    """Read the one document of a YAML file.

    Parameters
    ----------
    text : str
        The file's content.
    path : Path
        The file, for messages.

    Returns
    -------
    value : object
        None, bool, int, float and str, lists, and dicts with str keys; None for an empty file.
    lines : dict of KeyPath to int
        Line of each key, counted from 1; of a duplicate key that of the last, whose value counts.
    duplicates : list of (KeyPath, int, int)
        Every key that is there before: its path, the first line and this one.

    Raises
    ------
    Refusal
        If the text is no valid YAML, or exceeds a bound.
    """
    try:
        loader = _Loader(text, path)
        node = loader.get_single_node()
        if node is None:
            return None, {}, []
        loader.note(node, ())
        return loader.construct_document(node), loader.lines, loader.duplicates
    except yaml.reader.ReaderError as error:
        where = f"{path}:{text.count(chr(10), 0, error.position) + 1}"
        found = f"the character U+{error.character:04X}"
        raise Refusal.of(where, "printable characters", found) from None
    except yaml.MarkedYAMLError as error:
        raise _syntax_refusal(path, error) from None
    except (ValueError, OverflowError):
        # What PyYAML runs into with "\Uffffffff" and with a version of 5,000 digits.
        found = "a number that is too large"
        raise _refusal(path, loader.get_mark(), "valid YAML", found) from None


def _syntax_refusal(path: Path, error: yaml.MarkedYAMLError) -> Refusal:
    """What PyYAML says, in the words of this package: the line, expected, found."""
    mark, problem = error.problem_mark or error.context_mark, error.problem or str(error)
    if problem == "second occurrence":
        problem = error.context.partition(";")[0]
    if "'\\t'" in problem:
        return _refusal(path, mark, "indentation with spaces (YAML allows no tabs)", "a tab")
    if match := re.fullmatch(r"expected (.+), but (?:found|got) (.+)", problem, re.DOTALL):
        return _refusal(path, mark, f"valid YAML ({match[1]})", match[2])
    if match := re.fullmatch(r"(?:but )?found (.+)", problem, re.DOTALL):
        return _refusal(path, mark, "valid YAML", match[1])
    return _refusal(path, mark, "valid YAML", f"an error ({problem})")


def _refusal(path: Path, mark: yaml.Mark | None, expected: str, found: str) -> Refusal:
    where = str(path) if mark is None else f"{path}:{mark.line + 1}"
    return Refusal.of(where, expected, found)
