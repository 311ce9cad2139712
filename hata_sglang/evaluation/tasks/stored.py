"""What the tasks keep in ``data/``: RULER's wording, words of keys, and packed texts."""

from __future__ import annotations

import gzip
from functools import lru_cache
from importlib.resources import files

import yaml

_DATA = files("hata_sglang.evaluation") / "tasks" / "data"


def read_yaml(name: str) -> dict[str, str]:
    """Texts by name, of a YAML file."""
    return yaml.safe_load(_DATA.joinpath(name).read_text("utf-8"))


@lru_cache(maxsize=2)
def unpack(name: str) -> str:
    """A text that is kept compressed, such as ``words.txt.gz``."""
    return gzip.decompress(_DATA.joinpath(name).read_bytes()).decode("utf-8")


#: RULER's instructions, questions and openings of the answer.
WORDING = read_yaml("ruler.yaml")
