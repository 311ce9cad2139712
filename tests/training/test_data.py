"""Files to token sequences, and the texts of the demo model."""

import json
import random
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hata_sglang.training.data import DataError, read_sequences
from hata_sglang.training.demo_corpus import chat, library_texts, phrases, write_corpus
from hata_sglang.training.splits import SPLITS


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
        pytest.param('{"prompt": "x"}', r"a\.jsonl:1: expected 'text', 'messages'", id="keys"),
        pytest.param("no json", r"a\.jsonl:1: expected a JSON object", id="not-json"),
        pytest.param('{"tokens": [1, "2"]}', "expected integers in 'tokens'", id="not-tokens"),
        pytest.param('{"tokens": [1, 256]}', "from 0 to 255 .*found 1 to 256", id="vocabulary"),
        pytest.param('{"tokens": [-1, 2]}', "found -1 to 2", id="negative"),
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
        read_sequences([path], tokenizer, 100, 50, 256)


def test_token_files_need_no_tokenizer(tmp_path):
    rows = np.arange(24, dtype=np.uint16).reshape(2, 12)
    np.save(tmp_path / "a.npy", rows)
    np.save(tmp_path / "b.npy", rows[0].astype(np.int64))
    save_file({"x": torch.arange(12), "y": torch.arange(5)}, tmp_path / "c.safetensors")
    write_rows(tmp_path / "d.jsonl", {"tokens": [3, 1, 2, 5, 6, 7, 8]})
    files = [tmp_path / name for name in ("a.npy", "b.npy", "c.safetensors", "d.jsonl")]
    found = [(s.source, s.tokens) for s in read_sequences(files, None, 7, 4, 256)]
    first = tuple(range(12))
    assert found == [
        ("a.npy:1", first[:7]),
        ("a.npy:1", first[7:]),
        ("a.npy:2", tuple(range(12, 19))),
        ("a.npy:2", tuple(range(19, 24))),
        ("b.npy", first[:7]),
        ("b.npy", first[7:]),
        ("c.safetensors:x", first[:7]),
        ("c.safetensors:x", first[7:]),
        ("c.safetensors:y", (0, 1, 2, 3, 4)),
        ("d.jsonl:1", (3, 1, 2, 5, 6, 7, 8)),
    ]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(8), "expected integers, 1-D or 2-D, found float64 with 1 dim"),
        (np.zeros((2, 2, 2), dtype=int), "found int64 with 3 dim"),
        (np.zeros(8, dtype=bool), "found bool"),
        (np.array([print], dtype=object), "expected arrays of token numbers, found Object arrays"),
    ],
    ids=["floats", "3-D", "bools", "pickled-objects"],
)
def test_arrays_that_are_no_tokens_are_refused(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=message):
        read_sequences([tmp_path / "a.npy"], None, 8, 1)


def test_a_damaged_token_file_is_refused(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"not tensors")
    with pytest.raises(DataError, match=r"a\.safetensors: expected arrays of token numbers"):
        read_sequences([tmp_path / "a.safetensors"], None, 8, 1)


@pytest.mark.parametrize("row", [{"text": "words"}, {"messages": []}], ids=["text", "chat"])
def test_texts_need_a_tokenizer(tmp_path, row):
    path = write_rows(tmp_path / "a.jsonl", row)
    with pytest.raises(DataError, match="expected a tokenizer"):
        read_sequences([path], None, 8, 1)


def test_missing_file_is_refused(tmp_path, tokenizer):
    with pytest.raises(DataError, match=r"none\.txt: expected a UTF-8 text file"):
        read_sequences([tmp_path / "none.txt"], tokenizer, 100, 1)


def test_library_documents_belong_to_one_split():
    splits = [library_texts(split) for split in SPLITS]
    train, *others = map(len, splits)
    assert train > 4 * max(others)
    assert min(others) > 30
    assert len(set().union(*splits)) == sum(len(set(texts)) for texts in splits)


def test_splits_share_no_names_and_no_facts():
    assert phrases().keys() == set(SPLITS)
    for field in ("people", "places", "things", "sentences", "openings", "facts"):
        of_split = [words[field] for words in phrases().values()]
        if field == "facts":
            of_split = [[tuple(fact.values()) for fact in facts] for facts in of_split]
        assert len(set().union(*of_split)) == sum(map(len, of_split)), field


@pytest.mark.parametrize("split", SPLITS)
def test_a_chat_fits_and_contains_what_it_asks_for(tokenizer, split):
    messages = chat(random.Random(0), split, tokenizer, 12_000)
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
        write_corpus(tmp_path / name, tokenizer, 6000, 1, 1, 1, seed)
    for split in SPLITS:
        a, b, c = ((tmp_path / n / f"{split}.jsonl").read_bytes() for n in "abc")
        assert a == b
        assert a != c
