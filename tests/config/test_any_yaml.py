"""Whatever a YAML file holds: a configuration, or a refusal, never another exception."""

import json
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from hata_sglang.config import HataConfig
from hata_sglang.errors import Refusal


def check(load, argument):
    """What must hold: a configuration that comes back, or a refusal that a terminal may show."""
    config, text = None, ""
    try:
        config = load(argument)
    except Refusal as refusal:
        text = str(refusal)
    assert all(line.isprintable() for line in text.split("\n"))
    assert not re.search(r"expected (Input|Keys) should", text)
    if config is not None:
        assert HataConfig.parse(json.loads(json.dumps(config.to_mapping()))) == config


PIECES = """method: exact|method: hata|method: random|budget: 256|sink: 2
budget: {ratio: 1e-3, min: 81, max: 90}
weights: ./w|weights: ~x|seed: 4294967295|seed: -1|recent: 0|dense_layers: [0, 5-7]|layers:
  2-9: {budget: 300}|  5: {dense: true}|  ? [1]|  : 2|a: &a|*a|&b {x: *b}|<<: *a|<<: [*a, {sink: 1}]
!!int|!!str|!!python/name:os.x|!<x>|%YAML 1.1|%TAG ! x:|---|...|- |- 1|[|]|{|}|,|:|?|#|\\|\"|'||>|\t
"\\e[1m"|"\\Uffffffff"|"\\ud800"|true|null|~|.nan|.inf|1e400|0400|4:16|0x1f|-0|99999999999999999999
\u202e|\x85|\ufeff|é|=|@|`|2020-13-45|*nowhere""".replace("\n", "|").split("|")  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from(["\n", " ", ": ", "\n  "]))))
@settings(max_examples=400)
def test_any_pieces_of_yaml(tmp_path_factory, bounded, pieces):
    path = tmp_path_factory.getbasetemp() / "pieces.yaml"
    path.write_text("".join(piece + end for piece, end in pieces), encoding="utf-8")
    with bounded(seconds=5):
        check(HataConfig.load, path)


VALID = (
    b"method: random\nbudget: {ratio: 0.1, min: 99, max: 200}\nseed: 7\nlayers:\n  2-3: {sink: 1}\n"
)


@given(
    st.one_of(
        st.binary(max_size=200),
        st.tuples(st.integers(0, len(VALID)), st.integers(0, 9), st.binary(max_size=9)).map(
            lambda cut: VALID[: cut[0]] + cut[2] + VALID[cut[0] + cut[1] :]
        ),
    )
)
@settings(max_examples=400)
def test_any_bytes(tmp_path_factory, bounded, content):
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(content)
    with bounded(seconds=5):
        check(HataConfig.load, path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["exact", "random", "hata", "streaming", "2-5", 256, 128, 0, 2**31]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.text(max_size=3) | st.integers(-1, 9) | st.sampled_from(["2-5", "ratio", "min", "max",
                                                                    "budget", "dense", "bits"]),
        inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from([*HataConfig.model_fields, "x"]), VALUES, max_size=6))
@settings(max_examples=400)
def test_any_settings_in_memory(bounded, mapping):
    with bounded(seconds=5):
        check(HataConfig.parse, mapping)
