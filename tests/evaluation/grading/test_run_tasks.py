import csv
from dataclasses import replace

import pytest

from hata_sglang.errors import HataError
from hata_sglang.evaluation.client import ClientError
from hata_sglang.evaluation.grading import grade
from hata_sglang.evaluation.results import ResultFile
from hata_sglang.evaluation.run_tasks import COLUMNS, KEYS, questions
from hata_sglang.evaluation.sparsity import Arm, check_sparsity
from hata_sglang.evaluation.tasks import Sample

DENSE = Arm("dense")
SPARSE = Arm("asymmetric", "asymmetric", "128", "0.0156")


def make(count, text="Say {}."):
    return [
        Sample(
            task="t",
            index=index,
            prompt=text.format(index),
            references=(str(index),),
            new_tokens=8,
            tokens=9,
            depth=index / 10,
        )
        for index in range(count)
    ]


@pytest.fixture
def run(client, tmp_path):
    def run(arm, samples, seed=0, **options):
        results = ResultFile(tmp_path / "rows.csv", COLUMNS, KEYS)
        before = len(results)
        grade(client, arm, questions(samples, 4096, seed), results, **options)
        return len(results) - before

    return run


@pytest.fixture
def rows(tmp_path):
    def rows():
        with (tmp_path / "rows.csv").open(newline="") as stream:
            return list(csv.DictReader(stream))

    return rows


def echo(body):
    return body["messages"][0]["content"] * 100


def test_a_dense_arm(run, rows, fake):
    fake.answer = echo
    seen = []
    assert run(DENSE, make(3), seed=5, concurrency=2, on_rows=seen.append) == 3
    first = rows()[1]
    expected = {
        "arm": "dense",
        "method": "dense",
        "bits": "",
        "budget": "",
        "task": "t",
        "length": "4096",
        "index": "1",
        "depth": "0.1",
        "score": "1",
        "prompt_tokens": "100",
        "new_tokens": "5",
        "read": "",
        "prediction": ("Say 1." * 100)[:200],
        "reference": "1",
        "seed": "5",
    }
    assert {key: first[key] for key in expected} == expected
    assert sum(seen) == 3


def test_an_opening_starts_the_assistants_message(run, fake):
    (first, second) = make(2)
    run(DENSE, [replace(first, opening="It is"), second])
    (_, begun), (_, plain) = fake.requests
    assert begun["max_tokens"] == 8
    assert begun["messages"] == [
        {"role": "user", "content": "Say 0."},
        {"role": "assistant", "content": "It is"},
    ]
    assert begun["continue_final_message"] is True
    assert plain["messages"] == [{"role": "user", "content": "Say 1."}]
    assert "continue_final_message" not in plain


def test_a_sparse_arm_carries_method_bits_budget_and_what_it_read(run, rows, fake):
    fake.be_sparse()
    run(SPARSE, make(2))
    (row, _) = rows()
    assert [row[key] for key in ("arm", "method", "bits", "budget", "read")] == [
        "asymmetric",
        "asymmetric",
        "128",
        "0.0156",
        "0.10000",
    ]
    assert row["score"] == "0"  # the fake says 42


def test_a_broken_off_run_goes_on(run, rows, fake):
    fake.answer = echo
    fake.fail_after = 6
    with pytest.raises(ClientError, match="HTTP 500"):
        run(DENSE, make(10))
    assert len(rows()) == 4  # one whole batch of four
    fake.fail_after = None
    fake.requests.clear()
    seen = []
    assert run(DENSE, make(10), on_rows=seen.append) == 6
    assert len(fake.requests) == 6
    assert sum(seen) == 10
    assert [row["index"] for row in rows()] == [str(n) for n in range(10)]


def test_rows_of_other_arms_budgets_seeds_and_prompts_are_not_taken_for_these(run, fake):
    assert run(DENSE, make(2)) == 2
    assert run(DENSE, make(2)) == 0
    assert run(DENSE, make(2), seed=1) == 2
    assert run(DENSE, make(2, "Tell {}.")) == 2
    fake.be_sparse()
    assert run(SPARSE, make(2)) == 2
    assert run(Arm("asymmetric", "asymmetric", "64", "0.0156"), make(2)) == 2
    assert run(Arm("asymmetric", "asymmetric", "64", "256"), make(2)) == 2


def test_a_dense_run_is_never_reported_as_sparse(run, rows, fake):
    with pytest.raises(HataError, match=r"asymmetric at 0\.0156 was not sparse: .* no counters"):
        run(SPARSE, make(2))
    fake.be_sparse()
    fake.attended_share = 1.0
    with pytest.raises(HataError, match=r"not sparse: 16 sparse steps read 16000 of 16000"):
        run(SPARSE, make(5))
    fake.count = lambda new_tokens: None
    with pytest.raises(HataError, match="not sparse: 0 sparse steps"):
        run(SPARSE, make(2))
    assert rows() == []


def test_a_sparse_run_is_never_reported_as_dense(run, rows, fake):
    fake.be_sparse()
    with pytest.raises(HataError, match="the arm dense is dense, but the server runs hata"):
        run(DENSE, make(2))
    assert rows() == []


def test_answers_that_end_with_the_prefill_prove_nothing_and_read_nothing():
    zeros = {"decode_steps": 0, "layer_steps": 0, "tokens_in_context": 0, "tokens_attended": 0}
    assert check_sparsity(SPARSE, zeros, zeros, 0) == ""
