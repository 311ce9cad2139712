import json
import re
from dataclasses import replace

import pytest

from hata_sglang.errors import HataError
from hata_sglang.evaluation.tasks import TASKS, TaskUnavailable


@pytest.mark.parametrize(
    ("name", "file"), [("qa_1", "dev-v2.0.json"), ("qa_2", "hotpot_dev_distractor_v1.json")]
)
def test_a_missing_file_is_named(name, file, tokenizer, tmp_path):
    with pytest.raises(TaskUnavailable, match=rf"path of task {name}: expected .*{file}.* none"):
        TASKS[name].samples(1, 1000, tokenizer, 0)
    absent = replace(TASKS[name], path=tmp_path / "absent.json")
    with pytest.raises(TaskUnavailable, match=r"found no file .*absent\.json"):
        absent.samples(1, 1000, tokenizer, 0)


def documents(prompt: str) -> list[str]:
    context = prompt.split("are given documents.\n\n")[1].split("\n\nAnswer the question")[0]
    parts = context.split("\n\n")
    numbers = [int(re.match(r"Document (\d+):\n", part)[1]) for part in parts]
    assert numbers == list(range(1, len(parts) + 1))
    return [part.split("\n", 1)[1] for part in parts]


def test_squad(squad_file, tokenizer):
    task = replace(TASKS["qa_1"], path=squad_file)
    samples = task.samples(10, 700, tokenizer, 0)
    assert samples == task.samples(10, 700, tokenizer, 0)
    assert samples[:3] == task.samples(3, 700, tokenizer, 0)
    assert len({sample.prompt for sample in samples}) == 10
    places = set()
    for sample in samples:
        assert (sample.any_of, sample.new_tokens, sample.opening) == (True, 32, "Answer:")
        assert 600 < sample.tokens + 32 <= 700
        tower = re.search(r"When was the (tower \d-\d) built\?$", sample.prompt)[1]
        (reference,) = sample.references
        given = documents(sample.prompt)
        assert sample.info["documents"] == len(given) == len(set(given))
        (place,) = (n for n, d in enumerate(given) if d.startswith(f"The {tower} was built in"))
        assert reference in given[place]
        places.add(place)
        # The three other paragraphs of the article come before those of others.
        assert sum(f"tower {tower[6]}-" in d for d in given) == 4
    assert len(places) > 1
    assert task.samples(3, 700, tokenizer, 1) != samples[:3]


def test_hotpot(hotpot_file, tokenizer):
    for sample in replace(TASKS["qa_2"], path=hotpot_file).samples(8, 500, tokenizer, 0):
        poet = re.search(r"poet (\d)\?$", sample.prompt)[1]
        given = documents(sample.prompt)
        assert sample.references == (f"River {poet}",)
        assert given.count("Rivers\nRivers flow. They are long.") == 1
        assert any(d.startswith(f"Poet {poet}\n") for d in given)
        assert len(given) > 2


def test_limits_are_named(squad_file, hotpot_file, tokenizer):
    squad = replace(TASKS["qa_1"], path=squad_file)
    with pytest.raises(HataError, match=r"count of task qa_1: expected at most 24, .* found 25"):
        squad.samples(25, 700, tokenizer, 0)
    with pytest.raises(HataError, match=r"length of task qa_1: expected fewer than \d+ tokens"):
        squad.samples(1, 9000, tokenizer, 0)
    with pytest.raises(HataError, match=r"length of task qa_2: expected at least \d+ tokens"):
        replace(TASKS["qa_2"], path=hotpot_file).samples(1, 120, tokenizer, 0)


@pytest.mark.parametrize(
    "content", ['{"rows": []}', "[1]", "not json", '{"data": []}', '[{"question": "?"}]']
)
def test_other_files_are_refused(content, tmp_path, tokenizer):
    path = tmp_path / "data.json"
    path.write_text(content)
    with pytest.raises(HataError, match=r"path: .*data\.json: expected .* found"):
        replace(TASKS["qa_1"], path=path).samples(1, 700, tokenizer, 0)


def test_squad_1_needs_no_key_of_impossible_questions(tmp_path, squad_file, tokenizer):
    data = json.loads(squad_file.read_text())
    for article in data["data"]:
        for paragraph in article["paragraphs"]:
            paragraph["qas"] = paragraph["qas"][:1]
            del paragraph["qas"][0]["is_impossible"]
    old = tmp_path / "dev-v1.1.json"
    old.write_text(json.dumps(data))
    new = replace(TASKS["qa_1"], path=squad_file).samples(3, 700, tokenizer, 0)
    assert replace(TASKS["qa_1"], path=old).samples(3, 700, tokenizer, 0) == new
