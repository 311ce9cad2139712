import json

import pytest


@pytest.fixture
def squad_file(tmp_path):
    """Six articles of four paragraphs in SQuAD 2.0's layout, and a question that has no answer."""

    def paragraph(article: int, number: int) -> dict:
        name = f"tower {article}-{number}"
        context = f"The {name} was built in {1000 + 10 * article + number}. " + "It is high. " * 20
        known = {
            "question": f"When was the {name} built?",
            "answers": [{"text": str(1000 + 10 * article + number)}] * 2,
            "is_impossible": False,
        }
        unknown = {"question": f"Who built {name}?", "answers": [], "is_impossible": True}
        return {"context": context, "qas": [known, unknown]}

    data = {"data": [{"paragraphs": [paragraph(a, n) for n in range(4)]} for a in range(6)]}
    path = tmp_path / "dev-v2.0.json"
    path.write_text(json.dumps(data))
    return path


@pytest.fixture
def hotpot_file(tmp_path):
    """Eight questions in HotpotQA's layout, with two documents each; one is in all of them."""
    entries = [
        {
            "question": f"Which river flows through the birthplace of poet {n}?",
            "answer": f"River {n}",
            "context": [
                ["Rivers", ["Rivers flow. ", "They are long."]],
                [f"Poet {n}", [f"Poet {n} was born by River {n}. "] + ["He wrote. "] * 30],
            ],
        }
        for n in range(8)
    ]
    path = tmp_path / "hotpot_dev_distractor_v1.json"
    path.write_text(json.dumps(entries))
    return path
