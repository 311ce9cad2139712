import json
import re

import pytest

from hata_sglang.errors import HataError
from hata_sglang.evaluation.hidden_fact import HiddenFact, found, make_prompts
from hata_sglang.evaluation.measurement import measure
from hata_sglang.evaluation.server import ServerProcess
from hata_sglang.evaluation.sparsity import reading


@pytest.fixture
def prompts(tokenizer):
    return make_prompts(tokenizer, 20, 700)


def test_each_prompt_states_its_fact_once_and_asks_for_it(prompts):
    for fact in prompts:
        text, question = fact.prompt.rsplit("\n\n", 1)
        assert question == f"What is the special magic number of {fact.subject}?"
        assert text.count(f"The special magic number of {fact.subject} is {fact.answer}.") == 1
        assert re.findall(r"\d+", fact.prompt) == [fact.answer]
        assert re.fullmatch(r"[1-9]\d{4}", fact.answer)


def test_subjects_answers_and_depths_differ(prompts):
    for field in ("subject", "answer", "depth"):
        assert len({getattr(fact, field) for fact in prompts}) == 20
    depths = sorted(fact.depth for fact in prompts)
    assert depths == pytest.approx([n / 20 + 0.025 for n in range(20)])


def test_lengths_are_those_in_the_chat_template(tokenizer, prompts):
    for fact in prompts:
        text = tokenizer.apply_chat_template(
            fact.messages, tokenize=False, add_generation_prompt=True
        )
        length = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        assert fact.tokens == length
        assert 700 - 35 < length <= 700


def test_prompts_of_one_document_follow_at_rising_depth(tokenizer):
    facts = make_prompts(tokenizer, 8, 700, documents=2)
    for group in (facts[:4], facts[4:]):
        assert [f.depth for f in group] == sorted(f.depth for f in group)
        assert len({f.prompt[:30] for f in group}) == 1
    assert facts[0].prompt[:200] != facts[4].prompt[:200]


def test_prompts_are_the_same_again_and_change_with_the_seed(tokenizer):
    assert make_prompts(tokenizer, 5, 300) == make_prompts(tokenizer, 5, 300)
    again, other = make_prompts(tokenizer, 5, 300), make_prompts(tokenizer, 5, 300, seed=1)
    assert not {f.answer for f in again} & {f.answer for f in other}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "n: expected 1 to 24, found 0"),
        ({"n": 25}, "n: expected 1 to 24, found 25"),
        ({"n": 3, "documents": 4}, "documents: expected 1 to n = 3, found 4"),
        ({"tokens": 20}, "tokens: expected at least"),
    ],
)
def test_arguments_out_of_range_are_refused(tokenizer, change, message):
    with pytest.raises(ValueError, match=message):
        make_prompts(tokenizer, **{"n": 4, "tokens": 300, **change})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The special magic number of Lisbon is 48213.", True),
        ("48,213", True),
        ("It is\n48213", True),
        ("482130", False),
        ("148213", False),
        ("4821", False),
        ("1,48213", False),
        ("48 213", False),
        ("", False),
    ],
)
def test_found_wants_the_whole_number(text, expected):
    assert found("48213", text) is expected


def snapshot(steps: int, context: int, attended: int, layers: int = 1) -> dict[str, int]:
    counts = {"decode_steps": steps, "layer_steps": steps * layers}
    return {**counts, "tokens_in_context": context, "tokens_attended": attended}


def test_reading_tells_layers_steps_and_tokens_apart():
    # Four steps at contexts 101 to 104 in 28 layers, of which each reads 25 tokens.
    before, after = snapshot(2, 1000, 100, 28), snapshot(6, 1000 + 28 * 410, 100 + 28 * 100, 28)
    read = reading(before, after)
    assert (read.steps, read.layers, read.attended, read.context) == (4, 28, 25, 102.5)
    assert read.share == pytest.approx(25 / 102.5)


@pytest.mark.parametrize(
    "after", [snapshot(2, 1000, 100), snapshot(4, 2000, 1100)], ids=["no steps", "all attended"]
)
def test_reading_refuses_a_run_that_was_not_sparse(after):
    with pytest.raises(HataError, match="not sparse"):
        reading(snapshot(2, 1000, 100), after)


def test_measure_refuses_counters_that_stand_still(fake_server):
    fact = HiddenFact("Which?", "48213", "Lisbon", 0.5, 7)
    with ServerProcess(command=fake_server) as server:
        result = measure(server.client, fact)
        assert result.right
        assert result.read is None
        assert result.step_ms == pytest.approx(1e3 * sum(result.speed.gaps_s) / 2, rel=1)
        assert result.short_step_ms == pytest.approx(1e3 * sum(result.short.gaps_s) / 2, rel=1)
        assert 0 <= result.context_share < 1
    counters = json.dumps(snapshot(3, 60, 6))
    with (
        ServerProcess(["--counters", counters], command=fake_server) as server,
        pytest.raises(HataError, match="not sparse: 0 sparse steps"),
    ):
        measure(server.client, fact)


def test_measure_refuses_an_empty_reply(fake_server):
    fact = HiddenFact("Which?", "48213", "Lisbon", 0.5, 7)
    with (
        ServerProcess(command=fake_server) as server,
        pytest.raises(HataError, match="expected text, found an empty reply"),
    ):
        measure(server.client, fact, new_tokens=0)
