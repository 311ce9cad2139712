"""Files to token sequences, and the texts of the demo model."""

import json
import random
import re

import pytest

from hata_sglang.training.data import DataError, read_sequences
from hata_sglang.training.demo_corpus import chat, library_texts, write_corpus
from hata_sglang.training.demo_phrases import PHRASES


def write_rows(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_text_is_cut_and_short_rests_are_left_out(tmp_path, tokenizer):
    path = tmp_path / "a.txt"
    path.write_text("x" * 25, encoding="utf-8")
    assert [len(s.tokens) for s in read_sequences([path], tokenizer, 10, 5)] == [10, 10, 5]
    assert [len(s.tokens) for s in read_sequences([path], tokenizer, 10, 6)] == [10, 10]


def test_jsonl_rows_are_texts_or_chats_in_the_template(tmp_path, tokenizer):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    path = write_rows(tmp_path / "a.jsonl", {"text": "plain text"}, {"messages": messages})
    first, second = read_sequences([path], tokenizer, 100, 1)
    assert tokenizer.decode(first.tokens) == "plain text"
    assert tokenizer.decode(second.tokens) == "<user>hi\n<assistant>ho\n"
    assert second.source == "a.jsonl:2"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param('{"text": "short"}', "at least one text of 50 tokens", id="too-short"),
        pytest.param('{"prompt": "x"}', r"a\.jsonl:1: expected 'text' or 'messages'", id="keys"),
        pytest.param("no json", r"a\.jsonl:1: expected a JSON object", id="not-json"),
        pytest.param("[1]", r"a\.jsonl:1: expected a JSON object", id="not-an-object"),
        pytest.param(
            '{"messages": [{"role": "user", "content": "%s"}]}' % ("y" * 200),
            "a chat of at most 100 tokens",
            id="chat-too-long",
        ),
    ],
)
def test_unusable_rows_are_refused(tmp_path, tokenizer, content, message):
    path = tmp_path / "a.jsonl"
    path.write_text(content + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_sequences([path], tokenizer, 100, 50)


def test_missing_file_is_refused(tmp_path, tokenizer):
    with pytest.raises(DataError, match=r"none\.txt: expected a UTF-8 text file"):
        read_sequences([tmp_path / "none.txt"], tokenizer, 100, 1)


def test_library_documents_belong_to_one_split():
    train, held_out = library_texts("train"), library_texts("held_out")
    assert len(train) > 2 * len(held_out) > 100
    assert not set(train) & set(held_out)


def test_splits_share_no_names_and_no_facts():
    train, held_out = PHRASES["train"], PHRASES["held_out"]
    for field in ("people", "places", "things", "sentences", "facts", "openings"):
        assert not set(getattr(train, field)) & set(getattr(held_out, field)), field


def test_a_chat_fits_and_contains_what_it_asks_for(tokenizer):
    messages = chat(random.Random(0), "held_out", tokenizer, 12_000)
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert 10_000 < len(tokenizer(text)["input_ids"]) <= 12_000
    assert [m["role"] for m in messages] == ["user", "assistant"] * 8
    document = messages[0]["content"]
    numbers = [n for m in messages[1::2] for n in re.findall(r"\d+", m["content"])]
    assert numbers
    for number in numbers:
        assert re.search(rf"\b{number}\b", document)


def test_the_corpus_is_the_same_for_the_same_seed(tmp_path, tokenizer):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_corpus(tmp_path / name, tokenizer, 6000, 1, 1, seed)
    for file in ("train.jsonl", "held_out.jsonl"):
        a, b, c = ((tmp_path / n / file).read_bytes() for n in "abc")
        assert a == b
        assert a != c
