import itertools
import re

import pytest

from hata_sglang.evaluation.haystack import count_tokens, document, sentences

FACT = "The special magic number of Lisbon is 48213."


def test_the_same_seed_gives_the_same_document(tokenizer):
    assert document(tokenizer, 500, 3) == document(tokenizer, 500, 3)
    assert document(tokenizer, 500, 3) != document(tokenizer, 500, 4)


@pytest.mark.parametrize("tokens", [60, 333, 2000])
def test_length_falls_short_by_less_than_a_sentence(tokenizer, tokens):
    length = count_tokens(tokenizer, document(tokenizer, tokens, 0, FACT))
    assert tokens - 35 < length <= tokens


def test_prose_has_no_digits_and_rarely_repeats(tokenizer):
    text = document(tokenizer, 6000, 1)
    assert not re.search(r"\d", text)
    made = list(itertools.islice(sentences(1), 300))
    assert len(set(made)) == len(made)
    assert all(re.fullmatch(r"[A-Z][^.]*\.", sentence) for sentence in made)


@pytest.mark.parametrize("depth", [0.0, 0.3, 0.775, 1.0])
def test_fact_stands_at_its_depth(tokenizer, depth):
    text = document(tokenizer, 3000, 0, FACT, depth)
    before, after = text.split(FACT)
    share = count_tokens(tokenizer, before) / count_tokens(tokenizer, before + after)
    assert share == pytest.approx(depth, abs=0.01)
    assert before == "" or before.endswith(". ")


def test_text_before_the_fact_is_that_of_other_documents_of_the_seed(tokenizer):
    early = document(tokenizer, 1000, 5, FACT, 0.4)
    late = document(tokenizer, 1000, 5, FACT.replace("Lisbon", "Oslo"), 0.9)
    shared = next(i for i, (a, b) in enumerate(zip(early, late, strict=False)) if a != b)
    assert shared == pytest.approx(0.4 * len(early), rel=0.05)


def test_a_fact_longer_than_the_document_is_refused(tokenizer):
    with pytest.raises(ValueError, match="expected at least 9 for the fact, found 5"):
        document(tokenizer, 5, 0, FACT)
