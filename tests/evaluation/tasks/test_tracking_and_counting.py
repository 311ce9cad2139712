import random
import re
from collections import Counter

import pytest

from hata_sglang.evaluation.tasks import TASKS
from hata_sglang.evaluation.tasks.material import NOISE, letters, vocabulary


def resolve(text: str, value: str) -> list[str]:
    """Read assignments from the start, and give the variables that hold a value."""
    held: dict[str, str] = {}
    for name, other, number in re.findall(r"VAR ([A-Z]+) = (?:VAR ([A-Z]+)|(\d+))", text):
        held[name] = number or held[other]
    return [name for name, number in held.items() if number == value]


def test_the_chain_resolves_to_the_references(tokenizer):
    for sample in TASKS["vt"].samples(5, 3000, tokenizer, 0):
        example, text = re.split(r"\n\n\n\n", sample.prompt)
        value = re.search(r"assigned the value (\d+) in", text)[1]
        assert resolve(text, value) == list(sample.references)
        assert len(sample.references) == len(re.findall(r"VAR [A-Z]{5} = ", text)) == 5
        assert f"5 variables are assigned the value {value}" in sample.opening
        # The solved example says what its own text resolves to.
        value = re.search(r"assigned the value (\d+) in", example)[1]
        answer = example.rsplit("they are: ", 1)[1].split()
        assert resolve(example.rsplit("Question", 1)[0], value) == answer
        assert all(len(name) == 3 for name in answer)


def test_example_of_tracking_is_within_500_tokens(demo_tokenizer):
    (sample,) = TASKS["vt"].samples(1, 4096, demo_tokenizer, 0)
    example, text = re.split(r"\n\n\n\n", sample.prompt)
    assert 400 < len(demo_tokenizer(example)["input_ids"]) + 30 <= 500
    assert text.count(NOISE) > 100


@pytest.mark.parametrize(
    ("length", "often", "seldom", "shown"), [(2000, 6, 1, (20, 3, 1)), (4096, 30, 3, (40, 10, 3))]
)
def test_common_words_stand_as_often_as_defined(length, often, seldom, shown, tokenizer):
    for sample in TASKS["cwe"].samples(3, length, tokenizer, 0):
        example, listed = (
            re.findall(r"(\d+)\. ([a-z]+)", text.split("Question")[0])
            for text in sample.prompt.split("Below is a numbered list")[1:]
        )
        assert [int(n) for n, _ in listed] == list(range(1, len(listed) + 1))
        counts = Counter(word for _, word in listed)
        assert {w for w, n in counts.items() if n == often} == set(sample.references)
        assert {n for w, n in counts.items() if w not in sample.references} == {seldom}
        assert len(sample.references) == 10
        # The solved example: its own words, and the ten most common as the answer.
        words, times, once = shown
        answer = re.findall(r"\d+\. ([a-z]+)", sample.prompt.split("in the list are:")[1])[:10]
        counts = Counter(word for _, word in example)
        assert len(counts) == words
        assert {w for w, n in counts.items() if n == times} == set(answer)
        assert set(counts.values()) == {times, once}
        assert not set(counts) & {word for _, word in listed}


@pytest.mark.parametrize("length", [600, 4096, 20_000])
def test_coded_words_follow_a_zeta_distribution(length, tokenizer):
    for sample in TASKS["fwe"].samples(3, length, tokenizer, 0):
        context = sample.prompt.split("coded words. ")[1].rsplit("\nQuestion")[0].split(" ")
        counts = Counter(context)
        ranked = counts.most_common()
        assert ranked[0][0] == "..."
        assert [word for word, _ in ranked[1:4]] == list(sample.references)
        # No tie at any border of the answer.
        assert ranked[0][1] > ranked[1][1] > ranked[2][1] > ranked[3][1] > ranked[4][1]
        for rank, (_, times) in enumerate(ranked[:5], 1):
            assert times == pytest.approx(ranked[0][1] / rank**2, abs=1.1)
        assert all(re.fullmatch(r"[a-z]{6}", word) for word in counts if word != "...")


def test_vocabulary_is_clean():
    words = vocabulary()
    assert list(words) == sorted(set(words))
    assert len(words) > 7000
    assert all(re.fullmatch(r"[a-z]{4,12}", word) for word in words)


def test_letters_refuses_what_it_could_hardly_draw():
    assert len(set(letters(random.Random(0), 12, 2, "ABCDE"))) == 12
    with pytest.raises(ValueError, match="at most 12 strings of 2 letters, found 13"):
        letters(random.Random(0), 13, 2, "ABCDE")
