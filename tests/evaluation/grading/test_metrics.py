import sys

import pytest

from hata_sglang.errors import Refusal
from hata_sglang.evaluation.metrics import METRICS
from hata_sglang.evaluation.tasks.infinitebench import DEFINITIONS as INFINITE
from hata_sglang.evaluation.tasks.longbench import DEFINITIONS as LONG


@pytest.mark.parametrize(
    ("metric", "prediction", "references", "expected"),
    [
        ("string_match_all", "It is 12 and ABC.", ("12", "abc", "77", "99"), 0.5),
        ("string_match_part", "the Answer", ("nothing", "answer"), 1),
        ("string_match_part", "", ("answer",), 0),
        # Without articles: "cat sat", "cat sat down": 2 shared of 2 + 3 words.
        ("qa_f1", "The cat sat.", ("a cat, sat down",), 0.8),
        ("qa_f1", "cat", ("dog", "The Cat"), 1),
        ("qa_f1", "the", ("the",), 0),  # nothing is left of it
        ("qa_f1", "b b", ("b",), 2 / 3),  # a word counts as often as it occurs
        ("qa_f1_first_line", "\n\nParis\nQuestion: next", ("Paris",), 1),
        ("count", "There are 3, or 4, or 3.", ("3",), 2 / 3),
        ("count", "none", ("3",), 0),
        ("retrieval", "Paragraph 12", ("Paragraph 12",), 1),
        ("retrieval", "Paragraph 1 or 12", ("Paragraph 12",), 0.5),
        ("retrieval_zh", "段落7", ("段落7",), 1),
        ("first_integer", " 0123 and 9", ("0123",), 1),
        ("first_integer", "9 and 0123", ("0123",), 0),
        ("first_integer", "none", ("0123",), 0),
        ("first_number", "It is 2.50", ("2.5",), 1),
        ("first_number", "7.", ("7",), 1),
        ("first_number", "about 8", ("7",), 0),
        ("key_value", 'The value is "a-b".', ("a-b",), 1),
        ("key_value", "xa-b", ("a-b",), 0),
        ("last_integer", "It returns: `-4`.", ("-4",), 1),
        ("last_integer", "-4 or so", ("-4",), 0),
        ("code_option", " B. foo", ("foo", "B"), 1),
        ("code_option", "The correct option is: foo", ("foo", "B"), 1),
        ("code_option", "answer is: A", ("foo", "B"), 0),
        ("code_option", "I do not know", ("foo", "B"), 0),
        ("book_option", " B", ("Mary", "B"), 1),
        ("book_option", "A", ("Mary", "B"), 0),
        ("book_option", "Mary", ("Mary", "B"), 1),
        ("book_option", "I think the answer is B", ("Mary", "B"), 1),
        ("book_option", "perhaps C or B", ("Mary", "B"), 0),
        ("book_option", "", ("Mary", "B"), 0),
        ("speaker", "it is 'Jerry'.", ("JERRY",), 1),
        ("running_values", "[1, 4, 9]", ("1", "4", "8", "2"), 0.5),
        ("qa_f1_zh_signs", "他在家。", ("他家",), 0.8),
    ],
)
def test_by_hand(metric, prediction, references, expected):
    assert METRICS[metric](prediction, references, ()) == pytest.approx(expected)


def test_classes():
    metric = METRICS["classification_first_line"]
    classes = ("DESC", "DESC:manner", "NUM:date", "LOC:city")
    assert metric("DESC:manner", ("DESC:manner",), classes) == 1
    assert metric("DESC:manner or NUM:date\nLOC:city", ("DESC:manner",), classes) == 0.5
    assert metric("LOC:city", ("DESC:manner",), classes) == 0
    assert metric("none", ("DESC:manner",), classes) == 0


def test_rouge():
    pytest.importorskip("rouge")
    # Longest common subsequence "the cat sat": 3 of 4 and 3 of 3 words.
    expected = 2 * (3 / 4) * 1 / (3 / 4 + 1)
    assert METRICS["rouge_l"]("the cat sat", ("the cat then sat",), ()) == pytest.approx(
        expected, abs=1e-6
    )
    assert METRICS["rouge_l"]("", ("the cat",), ()) == 0
    assert METRICS["rouge_l"]("...", ("the cat",), ()) == 0


def test_rouge_of_long_texts_is_not_lost_to_the_recursion_limit():
    pytest.importorskip("rouge")
    text = " ".join(f"word{n}" for n in range(1200))
    assert METRICS["rouge_l"](text, (text,), ()) == pytest.approx(1, abs=1e-6)


def test_rouge_l_sum():
    pytest.importorskip("rouge_score")
    assert METRICS["rouge_l_sum"]("the cat sat", ("the cat then sat",), ()) == pytest.approx(6 / 7)


def test_chinese():
    pytest.importorskip("jieba")
    assert METRICS["qa_f1_zh"]("北京。", ("北京",), ()) == 1
    assert METRICS["qa_f1_zh"]("上海", ("北京",), ()) == 0
    pytest.importorskip("rouge")
    assert METRICS["rouge_l_zh"]("我在北京", ("我在北京",), ()) == pytest.approx(1, abs=1e-6)


def test_code():
    pytest.importorskip("rapidfuzz")
    metric = METRICS["code_similarity"]
    assert metric("```python\n# comment\nx = 1\ny = 2", ("x = 1",), ()) == 1
    # "abcd" and "abce": six of eight signs are in a common subsequence.
    assert metric("\nabcd", ("abce",), ()) == 0.75
    assert metric("# only a comment", ("x",), ()) == 0


@pytest.mark.parametrize(
    ("metric", "package"),
    [
        ("rouge_l", "rouge"),
        ("rouge_l_sum", "rouge_score"),
        ("qa_f1_zh", "jieba"),
        ("code_similarity", "rapidfuzz"),
    ],
)
def test_a_missing_package_is_named(metric, package, monkeypatch):

    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)

    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == package:
                raise ModuleNotFoundError(f"No module named {name!r}", name=package)

    monkeypatch.setattr(sys, "meta_path", [Blocked(), *sys.meta_path])
    with pytest.raises(Refusal, match=rf"package {package}: expected .*hata-sglang\[eval\]"):
        METRICS[metric]("some text", ("other text",), ())


def test_benchmarks_have_the_metrics_they_name():
    named = {each["metric"] for each in (*LONG.values(), *INFINITE.values())}
    assert named <= METRICS.keys()
