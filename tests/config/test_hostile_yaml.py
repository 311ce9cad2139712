"""YAML from strangers: one clear refusal, soon and in little memory, or a configuration."""

import itertools
import json
import os
import subprocess
import sys

import pytest

from hata_sglang.config import HataConfig
from hata_sglang.errors import Refusal

BASE = "method: exact\nbudget: 256\n"


def laughs(first, level, levels=10):
    """The "billion laughs": every level names the one before nine times."""
    lines = [f"a0: &a0 {first}"]
    for n in range(1, levels):
        aliases = ", ".join(level.format(place, f"*a{n - 1}") for place in range(9))
        lines.append(f"a{n}: &a{n} {first[0]}{aliases}{first[-1]}")
    return "\n".join(lines)


def load(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return HataConfig.load(path)


#: Name -> content, and what the first problem says was expected.
TOO_MUCH = {
    "200,000 open lists": ("a: " + "[" * 200_000, "at most 20 levels"),
    "5,000 lists": ("a: " + "[" * 5000 + "]" * 5000, "at most 20 levels"),
    "3,000 mappings": ("{a: " * 3000 + "1" + "}" * 3000, "at most 20 levels"),
    "700 levels of lines": (
        "".join(" " * n + "a:\n" for n in range(700)),
        "at most 20 levels",
    ),
    "laughs of mappings": (laughs("{x: 1}", "k{}: {}"), "at most 30,000 keys and values"),
    "laughs of lists": (laughs("[x, x]", "{1}"), "at most 30,000 keys and values"),
    "laughs of merges": (laughs("{x: 1}", "<<: {1}"), "at most 30,000 keys and values"),
    "laughs that are shown": (
        BASE + laughs("[x, x]", "{1}", levels=4) + "\nsink: *a3\nrecent: *a3\nlayers: *a3\n",
        "a number of tokens",
    ),
    "a long chain of aliases": (
        "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 9000)),
        "at most 30,000 keys and values",
    ),
    "a list in itself": ("a: &a [*a]\n", "values that end"),
    "a long tag for each value": (
        "%TAG !a! tag:" + "a" * 100_000 + "\n---\n[" + "!a!x 1," * 20_000 + "]\n",
        "no tag but those of YAML 1.2's core schema",
    ),
    "50 MB": ("layers:\n" + "  12345: 1\n" * 5_000_000, "a YAML file of at most 262,144 bytes"),
    "a word of all the bytes": (BASE + "sink: " + "x" * 262_000, "a number of tokens"),
    "a key of all the bytes": (BASE + "? " + "x" * 200_000 + "\n: 1", "a known key"),
    "7,000 bad layers": (
        BASE + "layers:\n" + "".join(f"  k{n}: {{s: {n}}}\n" for n in range(7000)),
        "a layer number or a range",
    ),
    "12,000 unknown keys": (
        BASE + "".join(f"unknown{n}: 1\n" for n in range(12_000)),
        "a known key",
    ),
    "6,561 ranges of all layers": (
        BASE
        + "dense_layers: []\nlayers:\n"
        + "".join(
            f' "{a * " "}{b * "0"}0{c * " "}-{d * " "}9999": {{sink: 1}}\n'
            for a, b, c, d in itertools.product(range(9), repeat=4)
        ),
        "each layer in one range",
    ),
    "dense layers with overrides": (
        BASE
        + "dense_layers: [0-9999]\nlayers:\n"
        + "".join(f"  {n}: {{sink: 1}}\n" for n in range(6000)),
        "no settings for a dense layer",
    ),
    "an alias for 2,000 layers": (
        BASE
        + f"a: &a {'x' * 200_000}\nlayers:\n"
        + "".join(f"  {n}: *a\n" for n in range(2000)),
        "a mapping of settings",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TOO_MUCH)
def test_too_much_of_anything(tmp_path, bounded, name):
    content, words = TOO_MUCH[name]
    with bounded(), pytest.raises(Refusal) as caught:
        load(tmp_path / "conf.yaml", content)
    assert words in caught.value.problems[0].expected
    assert len(str(caught.value)) < 100_000


def test_20_000_entries_of_dense_layers(tmp_path, bounded):
    with bounded():
        config = load(tmp_path / "c.yaml", BASE + "dense_layers:\n" + "- 0-9999\n" * 20_000)
    assert config.dense_layers == tuple(range(10_000))


@pytest.mark.parametrize(
    ("content", "problems"),
    [
        ("budget: !!int abc\n", ["DIR:1: expected a value of its tag !!int, found 'abc'"]),
        ("a: !!float x\n", ["DIR:1: expected a value of its tag !!float, found 'x'"]),
        ("a: 1\nb: !!bool x\n", ["DIR:2: expected a value of its tag !!bool, found 'x'"]),
        ("a: !!null x\n", ["DIR:1: expected a value of its tag !!null, found 'x'"]),
        (
            "method: !!timestamp 2020-13-45\n",
            ["DIR:1: expected no tag but those of YAML 1.2's core schema, found !!timestamp"],
        ),
        (
            "a: !!python/name:os.system\n",
            [
                "DIR:1: expected no tag but those of YAML 1.2's core schema, "
                "found !!python/name:os.system"
            ],
        ),
        (
            f"budget: {'9' * 5000}\n",
            ["DIR:1: expected an integer of at most 40 digits, found one of 5,000"],
        ),
        (
            f"budget: 0x{'f' * 5000}\n",
            ["DIR:1: expected an integer of at most 40 digits, found one of 5,002"],
        ),
        (
            f"%YAML 1.{'9' * 5000}\n---\n",
            ["DIR:1: expected valid YAML, found a number that is too large"],
        ),
        ('a: "\\ud800"\n', [r"DIR:1: expected whole characters, found '\ud800'"]),
        (
            BASE + "layers: {2: null}\n",
            [
                "layers.2 (DIR:3): expected a mapping of settings, such as {budget: 1024}, "
                "found nothing"
            ],
        ),
        (
            BASE + "layers: {q: 1}\n",
            [
                "layers.q (DIR:3): expected a layer number or a range such as 5 or '2-15' "
                "(first <= last, counted from 0), found 'q'"
            ],
        ),
        (
            BASE + "layers: {2: {4: 1}}\n",
            [
                "layers.2.4 (DIR:3): expected a known key (valid: method, bits, weights, budget, "
                "sink, recent, left_out, dense), found '4'"
            ],
        ),
        (
            BASE + "true: 1\n",
            [
                "true (DIR:3): expected a known key (valid: method, bits, weights, seed, budget, "
                "sink, recent, left_out, dense_layers, inner_backend, attend, traffic, layers), "
                "found 'true'"
            ],
        ),
    ],
    ids=range(14),
)  # fmt: skip
def test_odd_values_in_the_words_of_the_user(tmp_path, content, problems):
    with pytest.raises(Refusal) as caught:
        load(tmp_path / "conf.yaml", content)
    found = [str(p).replace(str(tmp_path / "conf.yaml"), "DIR") for p in caught.value.problems]
    assert found == problems


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("0400", 400), ("0o400", 256), ("0x100", 256), ("+256", 256), ('!!int "256"', 256)],
)
def test_integers_are_those_of_yaml_1_2(tmp_path, text, tokens):
    assert load(tmp_path / "c.yaml", f"method: exact\nbudget: {text}\n").budget.min == tokens


@pytest.mark.parametrize("text", ["4:16", "2_56", "0b100000000", "256s", "1e3", "'256'"])
def test_other_integers_of_yaml_1_1_are_words(tmp_path, text):
    with pytest.raises(Refusal) as caught:
        load(tmp_path / "c.yaml", f"method: exact\nbudget: {text}\n")
    (problem,) = caught.value.problems
    assert problem.found == ("1000.0" if text == "1e3" else repr(text.strip("'")))


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", ".001", "0.001", "1E-3", "+1e-3", "10e-4"])
def test_ratios_are_written_as_in_yaml_1_2(tmp_path, text):
    budget = f"{{ratio: {text}, min: 256, max: 4096}}"
    assert load(tmp_path / "c.yaml", f"method: exact\nbudget: {budget}\n").budget.ratio == 0.001


def test_yes_and_no_are_words(tmp_path):
    with pytest.raises(Refusal, match="expected true or false, found 'yes'"):
        load(tmp_path / "c.yaml", BASE + "layers: {5: {dense: yes}}\n")


@pytest.mark.parametrize(
    ("setting", "value"),
    [("budget", 2**31), ("budget", 10**30), ("sink", 2**31), ("recent", 2**63)],
)
def test_numbers_of_tokens_are_int32(setting, value):
    settings = {"method": "exact", "budget": 256}
    with pytest.raises(Refusal) as caught:
        HataConfig.parse(settings | {setting: value})
    problem = caught.value.problems[0]
    assert (problem.setting, problem.found) == (setting, str(value))
    assert "2**31 - 1" in problem.expected
    with pytest.raises(Refusal, match=r"budget\.max: expected a number .* 2\*\*31 - 1"):
        HataConfig.parse(settings | {"budget": {"ratio": 0.5, "min": 256, "max": value}})
    assert HataConfig.parse(settings | {"budget": 2**31 - 1}).budget.tokens(10**9) == 10**9


@pytest.mark.parametrize(
    "value", [10**5000, {"ratio": 10**5000}, [[[[[[[1]]]]]]]], ids=["integer", "ratio", "list"]
)
def test_what_memory_holds_is_shown_in_short(value):
    with pytest.raises(Refusal) as caught:
        HataConfig.parse({"method": "exact", "budget": value})
    assert len(caught.value.problems[0].found) <= 80


@pytest.mark.parametrize(
    "content",
    [
        '"\\e[31m\\e]0;title\\a": 1\n',
        '"a\\nhata cannot run: 0 problems": 1\n',
        '"\\u202ereversed": 1\n',
        'layers: {"\\e[2J": {sink: 1}}\n',
        'layers: {5: {"\\e[2J": 1}}\n',
        'method: "\\e[31m"\n',
        'dense_layers: ["\\u2066"]\n',
        '"\\ud800": 1\n',
        '"\\e": 1\n"\\e": 2\n',
        "a: *\u200f\n",
    ],
)
def test_nothing_in_a_file_reaches_the_terminal_raw(tmp_path, content):
    with pytest.raises(Refusal) as caught:
        load(tmp_path / "c\x1b.yaml", content)
    lines = str(caught.value).split("\n")
    assert all(line.isprintable() for line in lines)
    assert len(lines) == 1 + len(caught.value.problems)


@pytest.mark.parametrize(
    "weights", ["~nosuchuser/x", "./a\\0b", "~a\\0b", "./loop", "./" + "x" * 5000, "x" * 5000, ".."]
)
def test_unusual_paths_of_weights(tmp_path, weights):
    os.symlink(tmp_path / "loop", tmp_path / "loop")
    config = load(tmp_path / "c.yaml", f'method: hata\nbudget: 256\nweights: "{weights}"\n')
    from hata_sglang.weights import load_weights

    with pytest.raises(Refusal) as caught:
        load_weights(config.weights)
    words = "a card of hash weights" if weights == ".." else "a folder of hash weights"
    assert words in caught.value.problems[0].expected


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    os.symlink(tmp_path / "loop", tmp_path / "loop")
    for path, found in {
        tmp_path / "fifo": "a FIFO",
        "/dev/zero": "a device",
        tmp_path: "a folder",
        tmp_path / "loop": "Too many levels of symbolic links",
        tmp_path / ("x" * 5000): "File name too long",
        "a\0b": "no such file",
        "\ud800": "no such file",
        "/proc/self/status": "more than its 0 bytes",
    }.items():
        with pytest.raises(Refusal) as caught:
            HataConfig.load(path)
        assert caught.value.problems[0].found == found


#: Checks files one by one, after one that is fine, and which needs whatever is imported.
CHECK_ALL = """
import json, pathlib, resource, sys, time
from hata_sglang import cli

def check(file):
    start = time.process_time()
    code = cli.main(["config", "check", file, "--model", model])
    return code, time.process_time() - start

model, fine, *files = sys.argv[1:]
first = check(fine)[0]
pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
most = pages * resource.getpagesize() + 2**30
resource.setrlimit(resource.RLIMIT_AS, (most, most))
print("results", json.dumps([first, *map(check, files)]))
"""


def test_the_command_within_a_gigabyte_and_ten_seconds(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    numbers = {"num_hidden_layers": 4, "num_attention_heads": 2, "hidden_size": 32}
    (model / "config.json").write_text(json.dumps({"model_type": "llama", **numbers}))
    fine = tmp_path / "fine.yaml"
    fine.write_text("method: random\nbudget: 256\nseed: 4294967295\n")
    files = []
    for place, (content, _) in enumerate(TOO_MUCH.values()):
        files.append(tmp_path / f"{place}.yaml")
        files[-1].write_text(content)
    os.mkfifo(tmp_path / "fifo")
    files += [tmp_path / "fifo", "/dev/zero", tmp_path / ("x" * 5000)]
    command = [sys.executable, "-c", CHECK_ALL, model, fine, *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    first, *results = json.loads(done.stdout.rpartition("results ")[2])
    assert first == 0
    assert len(results) == len(files)
    assert {code for code, _ in results} == {2}
    assert max(seconds for _, seconds in results) < 10
    assert done.stderr.count("hata cannot run: ") >= len(files)
    assert "Traceback" not in done.stderr
