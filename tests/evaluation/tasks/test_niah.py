import random
import re

import pytest

from hata_sglang.evaluation.tasks import TASKS
from hata_sglang.evaluation.tasks.material import (
    ADJECTIVES,
    MOST_KEYS,
    NOISE,
    NOUNS,
    prose,
    split_sentences,
    word_keys,
)
from hata_sglang.evaluation.tasks.niah import NIAH_TASKS

NEEDLE = re.compile(r"One of the special magic (numbers|uuids) for (\S+) is: (\S+)\.")
WORDS, NUMBER = r"[a-z]+-[a-z]+", r"\d{7}"
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
#: Name -> needles, keys, answers, and what keys and values look like.
DEFINITIONS = {
    "niah_single_1": (1, 1, 1, WORDS, NUMBER),
    "niah_single_2": (1, 1, 1, WORDS, NUMBER),
    "niah_single_3": (1, 1, 1, WORDS, UUID),
    "niah_multikey_1": (4, 4, 1, WORDS, NUMBER),
    "niah_multikey_2": (None, None, 1, WORDS, NUMBER),
    "niah_multikey_3": (None, None, 1, UUID, UUID),
    "niah_multivalue": (4, 1, 4, WORDS, NUMBER),
    "niah_multiquery": (4, 4, 4, WORDS, NUMBER),
}


def test_the_eight_tasks():
    assert [task.name for task in NIAH_TASKS] == list(DEFINITIONS)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_needles_are_as_defined_and_answer_the_question(name, tokenizer):
    needles, keys, answers, key_form, value_form = DEFINITIONS[name]
    for sample in TASKS[name].samples(5, 3000, tokenizer, 7):
        found = NEEDLE.findall(sample.prompt)
        if needles is None:
            # Nothing but needles, each with a key of its own.
            context = sample.prompt.split("\n")[1:-1]
            assert len(context) == len(found) == len({key for _, key, _ in found})
            assert all(NEEDLE.fullmatch(line) for line in context)
            assert len(found) > 20
        else:
            assert len(found) == needles
            assert len({key for _, key, _ in found}) == keys
        assert all(re.fullmatch(key_form, key) for _, key, _ in found)
        assert all(re.fullmatch(value_form, value) for _, _, value in found)

        question = sample.prompt.rsplit("\n", 1)[1]
        asked = re.findall(key_form, question)
        assert sorted(v for _, key, v in found if key in asked) == sorted(sample.references)
        assert len(sample.references) == answers
        assert all(key in sample.opening for key in asked)
        plural = answers > 1
        assert question.startswith("What are all" if plural else "What is the")
        assert sample.opening.endswith("are" if plural else "is")
        assert sample.prompt.startswith("Some special magic" if plural else "A special magic")


def test_depth_is_the_share_of_the_haystack_before_the_needle(tokenizer):
    for sample in TASKS["niah_single_1"].samples(10, 3000, tokenizer, 0):
        before, after = NEEDLE.split(sample.prompt)[0], NEEDLE.split(sample.prompt)[-1]
        share = before.count(NOISE) / (before.count(NOISE) + after.count(NOISE))
        assert share == pytest.approx(sample.depth, abs=1e-3)
    depths = {s.depth for s in TASKS["niah_single_2"].samples(40, 3000, tokenizer, 0)}
    assert min(depths) < 0.15
    assert max(depths) > 0.85
    assert len(depths) > 15


def test_prose_is_a_text_from_its_start_and_begins_again_at_its_end(monkeypatch):
    assert prose(1)[0].startswith("It is a truth universally acknowledged")
    sentences = tuple(f"Sentence {n} is here." for n in range(25))
    monkeypatch.setattr("hata_sglang.evaluation.tasks.material._sentences", lambda: sentences)
    assert prose(26) == [*sentences, sentences[0]]


def test_the_novel_is_whole_and_without_any_licence_header():
    text = " ".join(prose(4000))
    assert len(text) > 400_000
    assert "gutenberg" not in text.lower()
    assert not re.search(r"Chapter \d|magic", text)
    # No sentence of it is a wall: lengths fall short by one sentence at most.
    assert max(map(len, prose(4000))) < 1200


def test_sentences_keep_titles_and_closing_quotes():
    text = '"Is Mr. Darcy here?"  he asked.\n"He left." Mrs. Hill said so! Nobody knew'
    assert split_sentences(text) == (
        '"Is Mr. Darcy here?" he asked.',
        '"He left."',
        "Mrs. Hill said so!",
        "Nobody knew",
    )


def test_keys_differ():
    assert len(set(ADJECTIVES)) == len(ADJECTIVES)
    assert len(set(NOUNS)) == len(NOUNS)
    assert len(set(word_keys(random.Random(0), MOST_KEYS))) == MOST_KEYS
    with pytest.raises(ValueError, match=f"at most {MOST_KEYS} different keys"):
        word_keys(random.Random(0), MOST_KEYS + 1)
