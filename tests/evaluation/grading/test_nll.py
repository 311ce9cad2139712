import csv
import math
from types import SimpleNamespace

import pytest
import torch

from hata_sglang.errors import HataError, Refusal
from hata_sglang.evaluation.forced import ForceTokens, decode_logprobs
from hata_sglang.evaluation.grading import grade
from hata_sglang.evaluation.nll import COLUMNS, KEYS, Chunk, make_chunks, questions, read_text
from hata_sglang.evaluation.results import ResultFile
from hata_sglang.evaluation.sparsity import Arm

SPARSE = Arm("asymmetric", "asymmetric", "128", "0.0156")


def true_logprobs(prompt, force, logits_of):
    ids = list(prompt)
    values = []
    for token in force:
        values.append(logits_of(ids).log_softmax(-1)[token].item())
        ids.append(token)
    return values


@pytest.mark.parametrize("force", [[7, 8, 9, 7], [0, 1, 0, 0, 1, 49], [1]])
def test_forced_tokens_carry_their_own_probability(client, logits_of, force):
    prompt = [3, 1, 4, 1, 5]
    found = decode_logprobs(client, prompt, force)
    assert found == pytest.approx(true_logprobs(prompt, force, logits_of), abs=2e-5)
    assert min(found) < -1  # none of these is what the model would have said


@pytest.mark.parametrize("own", [-1e-9, -30.0])
def test_extreme_probabilities_survive(own):
    logits = torch.zeros(1, 50)
    logits[0, 7] = 40.0 if own > -1 else math.log(49) + own
    expected = logits.log_softmax(-1)[0, 7].item()
    params = {"force": [7], "carriers": [0, 1], "__req__": SimpleNamespace(output_ids=[])}
    left = ForceTokens()(logits, [params]).log_softmax(-1)[0]
    assert left.argmax() == 7
    assert (left[0] - left[7] + 1).item() == pytest.approx(expected, abs=1e-5)


def test_rows_have_steps_of_their_own_and_end_by_themselves():
    logits = torch.randn(3, 50)
    before = logits.clone()
    rows = [([5, 6], [9]), ([8], []), ([4], [1])]
    params = [
        {"force": force, "carriers": [0, 1], "__req__": SimpleNamespace(output_ids=out)}
        for force, out in rows
    ]
    after = ForceTokens()(logits, params)
    assert after.argmax(-1)[:2].tolist() == [6, 8]
    assert torch.equal(after[2], before[2])


def test_overlap_scheduling_is_found_out(client, fake):
    fake.ids_lag = 1
    with pytest.raises(HataError, match=r"number 1 is another; .*--disable-overlap-schedule"):
        decode_logprobs(client, [1, 2, 3], [7, 8, 9])


def results(tmp_path):
    return ResultFile(tmp_path / "nll.csv", COLUMNS, KEYS)


def read(tmp_path):
    with (tmp_path / "nll.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def measure(client, arm, tmp_path, **options):
    """Grade `CHUNKS`; gives the number of new rows."""
    rows = results(tmp_path)
    before = len(rows)
    grade(client, arm, questions(CHUNKS, "novel"), rows, **options)
    return len(rows) - before


CHUNKS = [Chunk(0, (3, 1, 4), (7, 8, 9)), Chunk(1, (2, 7, 1), (8, 2, 8))]


def test_mean_of_decode_steps_without_the_prefills_token(client, logits_of, tmp_path):
    assert measure(client, Arm("dense"), tmp_path) == 2
    rows = read(tmp_path)
    expected = [-sum(true_logprobs(c.prompt, c.force, logits_of)[1:]) / 2 for c in CHUNKS]
    assert [float(row["nll"]) for row in rows] == pytest.approx(expected, abs=1e-5)
    assert rows[0]["context"] == "4"
    assert rows[0]["continuation"] == "2"
    assert rows[0]["text"] == "novel"


def test_a_second_run_asks_nothing(client, fake, tmp_path):
    fake.be_sparse()
    seen = []
    for expected in (2, 0):
        assert measure(client, SPARSE, tmp_path, concurrency=2, on_rows=seen.append) == expected
    assert sum(seen) == 4
    assert len(fake.requests) == 2
    assert {row["read"] for row in read(tmp_path)} == {"0.10000"}


def test_a_dense_server_is_no_sparse_arm(client, tmp_path):
    with pytest.raises(HataError, match="was not sparse"):
        measure(client, SPARSE, tmp_path)
    assert read(tmp_path) == []


def test_chunks_are_spread_over_the_text(chars):
    text = "".join(chr(100 + n) for n in range(100))
    chunks = make_chunks(chars, text, count=3, context=20, continuation=10)
    assert [chunk.prompt[0] - 100 for chunk in chunks] == [0, 35, 70]
    assert all(len(chunk.prompt) == 19 and len(chunk.force) == 11 for chunk in chunks)
    assert chunks[2].force[-1] == 199
    assert len({chunk.sample for chunk in chunks}) == 3


def test_a_beginning_of_text_token_comes_first(chars):
    class WithBos(type(chars)):
        bos_token_id = 1

        def __call__(self, text, *, add_special_tokens):
            ids = [ord(sign) for sign in text]
            return {"input_ids": [1, *ids] if add_special_tokens else ids}

    (chunk,) = make_chunks(WithBos(), "x" * 50, 1, 20, 10)
    assert chunk.prompt[:2] == (1, ord("x"))
    assert len(chunk.prompt + chunk.force) == 30


def test_too_short_a_text_is_refused(chars):
    with pytest.raises(Refusal, match="at least 2 x 30 tokens of text, found 50 tokens"):
        make_chunks(chars, "x" * 50, 2, 20, 10)
    with pytest.raises(Refusal, match="--context: expected at least 3, found 1"):
        make_chunks(chars, "x" * 50, 1, 1, 10)


def test_texts(tmp_path):
    name, text = read_text()
    assert name == "pride-and-prejudice"
    assert len(text) > 500_000
    (tmp_path / "mine.txt").write_text("words")
    assert read_text(str(tmp_path / "mine.txt")) == ("mine", "words")
    kind, text = read_text("chats")
    assert kind == "chats"
    assert text.startswith("user: ")
    assert "\n\nassistant: " in text
    with pytest.raises(Refusal, match=r"--text: expected a readable file in UTF-8, .*, languages"):
        read_text(str(tmp_path / "none.txt"))
