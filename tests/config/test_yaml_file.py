"""YAML files: what cannot be read, where a problem lies, duplicate keys."""

import pytest

from hata_sglang.config import HataConfig
from hata_sglang.errors import Refusal


@pytest.fixture
def refusal_of(tmp_path):
    """Write a text (or bytes) to conf.yaml, load it, and give the problems with the file cut."""

    def refusal_of(content):
        path = tmp_path / "conf.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(Refusal) as caught:
            HataConfig.load(path)
        return [str(p).replace(str(tmp_path), "DIR") for p in caught.value.problems]

    return refusal_of


def test_loads(tmp_path):
    path = tmp_path / "conf.yaml"
    path.write_text("method: exact\nbudget: 256\nlayers: {2-15: {budget: 1024}, 17: {sink: 4}}\n")
    config = HataConfig.load(str(path))
    assert sorted(config.layers) == ["17", "2-15"]
    assert config == HataConfig.load(path)


@pytest.mark.parametrize("where", ["missing.yaml", "missing/folder.yaml"])
def test_missing_file(tmp_path, where):
    with pytest.raises(Refusal) as caught:
        HataConfig.load(tmp_path / where)
    (problem,) = caught.value.problems
    assert problem.setting == str(tmp_path / where)
    assert (problem.expected, problem.found) == ("a YAML file", "no such file")


def test_folder_instead_of_file(tmp_path):
    with pytest.raises(Refusal, match=r"expected a YAML file .a regular file., found a folder"):
        HataConfig.load(tmp_path)


@pytest.mark.parametrize("content", ["", "   \n\n", "# only a comment\n", "---\n", "~\n"])
def test_empty_file(refusal_of, content):
    assert refusal_of(content) == [
        "DIR/conf.yaml: expected a mapping of settings (method, budget, ...), found an empty file"
    ]


@pytest.mark.parametrize(
    ("content", "kind"), [("- method\n", "list"), ("method\n", "str"), ("256\n", "int")]
)
def test_no_mapping(refusal_of, content, kind):
    assert refusal_of(content)[0].endswith(f"(method, budget, ...), found a {kind}")


def test_tab(refusal_of):
    assert refusal_of("method: exact\nbudget:\n\tratio: 0.1\n") == [
        "DIR/conf.yaml:3: expected indentation with spaces (YAML allows no tabs), found a tab"
    ]


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ("budget: [1, 2\n", 2, "valid YAML (',' or ']'), found '<stream end>'"),
        ("a: 1\n  budget: 256\n", 2, "valid YAML, found an error (mapping values are not allowed"),
        ("a: 1\n---\nmethod: exact\n", 2, "valid YAML, found another document"),
        ("method: *nowhere\n", 1, "valid YAML, found undefined alias 'nowhere'"),
        ("a: &x 1\nb: &x 2\n", 2, "valid YAML, found duplicate anchor 'x'"),
        ("a: !!map 3\n", 1, "valid YAML (a mapping node), found scalar"),
        ("? [a, b]\n: 1\n", 1, "a word as a key, found a sequence"),
        ('a: "\\Uffffffff"\n', 1, "valid YAML, found a number that is too large"),
    ],
)
def test_invalid_yaml_names_the_line(refusal_of, content, line, words):
    (problem,) = refusal_of(content)
    assert problem.startswith(f"DIR/conf.yaml:{line}: expected {words}")


@pytest.mark.parametrize("content", [b"method: \xff\xfe\n", b"method: exact\n# caf\xe9\n"])
def test_not_utf8(refusal_of, content):
    (problem,) = refusal_of(content)
    assert problem.startswith("DIR/conf.yaml: expected a UTF-8 text file, found byte ")


@pytest.mark.parametrize(("char", "name"), [("\0", "U+0000"), ("\x1b", "U+001B")])
def test_control_character(refusal_of, char, name):
    assert refusal_of(f"# a\nmethod: exact{char}\n") == [
        f"DIR/conf.yaml:2: expected printable characters, found the character {name}"
    ]


def test_mapping_inside_itself(refusal_of):
    assert refusal_of("method: exact\nbudget: &a\n  ratio: *a\n") == [
        "DIR/conf.yaml:3: expected values that end, found *a inside what it stands for"
    ]


def test_problems_name_their_lines(refusal_of):
    content = "method: exact\n\nbudgets: 3\nlayers:\n  5:\n    sink: -1\n  2-9: {recent: 10}\n"
    assert [p.split(": expected")[0] for p in refusal_of(content)] == [
        "budget (DIR/conf.yaml)",
        "layers.5.sink (DIR/conf.yaml:6)",
        "budgets (DIR/conf.yaml:3)",
        "layers.2-9 (DIR/conf.yaml:7)",
    ]


def test_missing_key_of_a_mapping_names_the_mapping(refusal_of):
    content = "method: exact\nbudget:\n  ratio: 0.1\n  min: 100\n"
    assert refusal_of(content)[0].startswith("budget.max (DIR/conf.yaml:2): expected a number")


def test_duplicate_keys_with_the_other_problems(refusal_of):
    content = "method: exact\nbudget: 256\nlayers:\n  5: {sink: 1}\n  5: {sink: 2}\nbudget: 0\n"
    assert [p.split(", found")[0] for p in refusal_of(content)] == [
        "layers.5 (DIR/conf.yaml:5): expected each key once",
        "budget (DIR/conf.yaml:6): expected each key once",
        "budget (DIR/conf.yaml:6): expected a number of tokens (integer, 1 to 2**31 - 1) or "
        "{ratio: 0.0156, min: 256, max: 4096}",
    ]
    assert "found the key again (first on line 4)" in refusal_of(content)[0]


def test_merge_keys_are_no_duplicates(tmp_path):
    path = tmp_path / "conf.yaml"
    path.write_text(
        "method: exact\nbudget: 256\nlayers:\n"
        "  5: &wide {budget: 1024, sink: 4}\n  6: {<<: *wide, budget: 512}\n"
    )
    layers = HataConfig.load(path).layers
    assert (layers["6"].budget.tokens(9999), layers["6"].sink) == (512, 4)


def test_model_problems_name_their_lines(tmp_path):
    path = tmp_path / "conf.yaml"
    path.write_text("method: exact\nbudget: 256\ndense_layers: [7]\nlayers:\n  8: {sink: 2}\n")
    with pytest.raises(Refusal) as caught:
        HataConfig.load(path).resolve(num_layers=4, context_len=1000)
    assert [p.setting for p in caught.value.problems] == [
        f"dense_layers ({path}:3)",
        f"layers.8 ({path}:5)",
    ]


def test_weights_hold_from_the_folder_of_the_file(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "conf.yaml").write_text("method: hata\nbudget: 256\nweights: ./mine\n")
    monkeypatch.chdir(tmp_path)
    assert HataConfig.load("sub/conf.yaml").weights == str(tmp_path / "sub" / "mine")
