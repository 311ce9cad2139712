"""What holds for every RULER task."""

import pytest

from hata_sglang.errors import HataError
from hata_sglang.evaluation.tasks import TASKS, Sample, Task
from hata_sglang.evaluation.tasks.base import prompt_tokens

#: Published lengths of the answer (RULER, ``scripts/data/synthetic/constants.py``).
NEW_TOKENS = {
    **{f"niah_single_{n}": 128 for n in (1, 2, 3)},
    **{f"niah_multikey_{n}": 128 for n in (1, 2, 3)},
    "niah_multivalue": 128,
    "niah_multiquery": 128,
    "vt": 30,
    "cwe": 120,
    "fwe": 50,
}


@pytest.mark.parametrize("name", NEW_TOKENS)
@pytest.mark.parametrize("length", [1024, 4096])
def test_prompts_fill_the_length_and_hold_their_references(name, length, demo_tokenizer):
    samples = TASKS[name].samples(3, length, demo_tokenizer, 0)
    assert [sample.index for sample in samples] == [0, 1, 2]
    for sample in samples:
        assert sample.task == name
        assert sample.new_tokens == NEW_TOKENS[name]
        assert sample.tokens == prompt_tokens(demo_tokenizer, sample.prompt, sample.opening)
        # A sentence of the novel, or one UUID needle of three lines, may not fit any more.
        assert length - 120 < sample.tokens + sample.new_tokens <= length
        assert sample.references
        assert len(set(sample.references)) == len(sample.references)
        assert all(reference in sample.prompt for reference in sample.references)
        assert not any(reference in sample.opening for reference in sample.references)
        assert sample.opening == sample.opening.strip()


@pytest.mark.parametrize("name", NEW_TOKENS)
def test_the_seed_and_index_decide_a_sample(name, tokenizer):
    first = TASKS[name].samples(3, 2000, tokenizer, 0)
    assert first == TASKS[name].samples(3, 2000, tokenizer, 0)
    assert first[:2] == TASKS[name].samples(2, 2000, tokenizer, 0)
    assert len({sample.references for sample in first}) == 3
    other = TASKS[name].samples(3, 2000, tokenizer, 1)
    assert not {s.references for s in other} & {s.references for s in first}


@pytest.mark.parametrize("name", ["niah_multikey_1", "niah_multikey_3", "vt", "fwe"])
def test_what_is_hidden_does_not_depend_on_the_length(name, tokenizer):
    short, long = (TASKS[name].samples(2, length, tokenizer, 0) for length in (2000, 6000))
    assert [s.references for s in short] == [s.references for s in long]


@pytest.mark.parametrize("name", NEW_TOKENS)
def test_too_short_a_length_says_what_is_needed(name, tokenizer):
    with pytest.raises(HataError, match=rf"length of task {name}: expected at least \d+ .* 90"):
        TASKS[name].samples(1, 90, tokenizer, 0)


def test_words_that_run_out_are_an_error(tokenizer):
    with pytest.raises(HataError, match=r"cwe: expected fewer than \d+ .* found 200000"):
        TASKS["cwe"].samples(1, 200_000, tokenizer, 0)


def test_every_name_is_its_tasks_name():
    assert set(NEW_TOKENS) == set(TASKS)
    assert all(isinstance(task, Task) and task.name == name for name, task in TASKS.items())


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("It is 12 and ABC.", ("12", "abc", "77", "99"), 0.5),
        ("the Answer", ("answer",), 1),
        ("", ("answer",), 0),
    ],
)
def test_scores_by_hand(answer, references, expected):
    assert Sample("t", "?", references, 8).score(answer) == expected
