import json

import pytest

from hata_sglang.errors import HataError
from hata_sglang.evaluation.tasks import TASKS, TaskUnavailable, make_task
from hata_sglang.evaluation.tasks.local_files import choose


def jsonl(path, *records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def long_record(n=0, **changes):
    return {
        "input": f"Question {n}?",
        "context": "The long text. " * 20,
        "answers": [f"answer {n}", "other"],
        "length": 60,
        "dataset": "qasper",
        "language": "en",
        "all_classes": None,
        "_id": f"id{n}",
    } | changes


def infinite_record(**changes):
    return {"id": 7, "context": "CONTEXT", "input": "INPUT", "answer": ["42"], "options": []} | (
        changes
    )


def samples(name, folder, count=1, length=9000, tokenizer=None, seed=0):
    return make_task(name, path=str(folder)).samples(count, length, tokenizer, seed)


def test_a_longbench_record_becomes_a_sample(tmp_path, chars):
    jsonl(tmp_path / "qasper.jsonl", long_record())
    (sample,) = samples("longbench/qasper", tmp_path, tokenizer=chars)
    assert sample.prompt.startswith("You are given a scientific article and a question.")
    assert "Article: The long text. The long" in sample.prompt
    assert sample.prompt.endswith("Question: Question 0?\n\nAnswer:")
    assert sample.references == ("answer 0", "other")
    assert (sample.new_tokens, sample.metric) == (128, "qa_f1")
    assert sample.tokens == len(sample.prompt) + 10
    assert sample.info == {"length": 9000, "record": "id0", "words": 60, "chat": 1}
    assert sample.all_classes == ()


def test_few_shot_sets_go_without_chat_template_and_keep_their_classes(tmp_path, chars):
    folder = tmp_path / "data"
    folder.mkdir()
    jsonl(folder / "trec_e.jsonl", long_record(all_classes=["A", "B"], dataset="trec"))
    (sample,) = samples("longbench-e/trec", tmp_path, tokenizer=chars)
    assert sample.info["chat"] == 0
    assert sample.tokens == len(sample.prompt)
    assert sample.all_classes == ("A", "B")
    assert sample.metric == "classification_first_line"


def test_the_middle_of_a_long_prompt_is_cut(tmp_path, chars):
    context = "".join(f"<{n}>" for n in range(2000))
    jsonl(tmp_path / "qasper.jsonl", long_record(context=context))
    (sample,) = samples("longbench/qasper", tmp_path, length=3000, tokenizer=chars)
    assert 2860 <= sample.tokens <= 3000 - 128
    assert sample.prompt.startswith("You are given a scientific article")
    assert "<0><1>" in sample.prompt
    assert "<1000>" not in sample.prompt
    assert sample.prompt.endswith("Question: Question 0?\n\nAnswer:")
    with pytest.raises(HataError, match="length: expected more room"):
        samples("longbench/qasper", tmp_path, length=130, tokenizer=chars)


def test_more_samples_of_a_seed_begin_with_the_fewer(tmp_path, chars):
    jsonl(tmp_path / "qasper.jsonl", *(long_record(n) for n in range(30)))
    few = samples("longbench/qasper", tmp_path, count=4, tokenizer=chars)
    many = samples("longbench/qasper", tmp_path, count=30, tokenizer=chars)
    assert few == many[:4]
    assert {sample.info["record"] for sample in many} == {f"id{n}" for n in range(30)}
    other = samples("longbench/qasper", tmp_path, count=30, tokenizer=chars, seed=1)
    assert [s.info["record"] for s in other] != [s.info["record"] for s in many]
    assert [sample.index for sample in few] == [0, 1, 2, 3]


def test_more_samples_than_records_are_an_error():
    with pytest.raises(HataError, match="count: expected 1 to 2"):
        choose([{}, {}], 3, 0)


def test_files_that_are_not_there_or_not_as_published(tmp_path, chars):
    with pytest.raises(TaskUnavailable, match="--data longbench=FOLDER"):
        TASKS["longbench/qasper"].samples(1, 1000, chars, 0)
    with pytest.raises(TaskUnavailable, match=r"qasper\.jsonl.*found neither"):
        samples("longbench/qasper", tmp_path, tokenizer=chars)
    path = tmp_path / "qasper.jsonl"
    path.write_text("\n{broken\n")
    with pytest.raises(HataError, match=r"qasper\.jsonl:2: expected JSON"):
        samples("longbench/qasper", tmp_path, tokenizer=chars)
    jsonl(path, {"input": "", "context": ""})
    with pytest.raises(HataError, match=r"qasper\.jsonl:1: .*answers, length, all_classes, _id$"):
        samples("longbench/qasper", tmp_path, tokenizer=chars)
    path.write_text("\n")
    with pytest.raises(HataError, match="an empty file"):
        samples("longbench/qasper", tmp_path, tokenizer=chars)


@pytest.mark.parametrize(
    ("name", "record", "inside", "opening", "references"),
    [
        ("passkey", {}, "CONTEXT\n\nINPUT", "The pass key is", ("42",)),
        ("kv_retrieval", {}, "JSON object below.\n\nCONTEXT\n\nINPUT", "", ("42",)),
        ("longbook_sum_eng", {}, "below.\n\nCONTEXT", "Summary:", ("42",)),
        (
            "longbook_choice_eng",
            {"options": ["x", "y", "z", "w"], "answer": ["z"]},
            "Question: INPUT\nA. x\nB. y\nC. z\nD. w",
            "The letter of the correct answer is",
            ("z", "C"),
        ),
        (
            "code_debug",
            {"options": ["f", "g", "h", "i"], "answer": ["g", "B"]},
            "CONTEXT\n\nOptions:\nA. f\nB. g",
            "The correct option is:",
            ("g", "B"),
        ),
        (
            "code_run",
            {"input": "Please give me the return value of func_3(-5).", "answer": ["-9"]},
            "a function called func_3 in",
            "The value of func_3(-5) is",
            ("-9",),
        ),
        (
            "math_find",
            {"input": "The largest number of the list is:", "answer": [93]},
            "What is the largest number in the following list?\n\nCONTEXT",
            "",
            ("93",),
        ),
        ("longdialogue_qa_eng", {"answer": ["MARY"]}, '"$$MASK$$"', None, ("MARY",)),
        ("longbook_qa_chn", {"answer": ["甲", "乙"]}, "问题：INPUT", "答案：", ("甲", "乙")),
    ],
)
def test_infinitebench_records(name, record, inside, opening, references, tmp_path, chars):
    jsonl(tmp_path / f"{name}.jsonl", infinite_record(**record))
    (sample,) = samples(f"infinitebench/{name}", tmp_path, tokenizer=chars)
    assert inside in sample.prompt
    assert "{" not in sample.prompt
    if opening is not None:
        assert sample.opening == opening
        assert sample.tokens == len(sample.prompt) + 10 + len(opening)
    assert sample.references == references
    assert sample.info["record"] == "7"


def test_math_calc_has_a_value_per_step_and_needs_room_for_them(tmp_path, chars):
    jsonl(tmp_path / "math_calc.jsonl", infinite_record(answer=[[1, 4, -2]]))
    (sample,) = samples("infinitebench/math_calc", tmp_path, length=40_000, tokenizer=chars)
    assert sample.references == ("1", "4", "-2")
    with pytest.raises(HataError, match="length: expected more room"):
        samples("infinitebench/math_calc", tmp_path, length=8000, tokenizer=chars)


def test_a_question_without_its_call_is_an_error(tmp_path, chars):
    jsonl(tmp_path / "code_run.jsonl", infinite_record())
    with pytest.raises(HataError, match=r"record 7: expected a call such as func_1\(5\)"):
        samples("infinitebench/code_run", tmp_path, tokenizer=chars)
