import re

import pytest

from hata_sglang.errors import HataError
from hata_sglang.evaluation.hidden_fact import CITIES, Reply, ask, found, make_prompts
from hata_sglang.evaluation.server import ServerProcess


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
        ({"n": len(CITIES) + 1}, "n: expected 1 to 24, found 25"),
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


def test_reply_times_leave_the_prefill_out():
    reply = Reply("a b c", prompt_tokens=9, new_tokens=3, times=(10.0, 10.5, 11.0))
    assert reply.first_token_s == 10.0
    assert reply.gaps_s == [0.5, 0.5]
    assert reply.tokens_per_s == 2.0


def test_ask_goes_through_the_openai_client(fake_server):
    with ServerProcess(command=fake_server) as server:
        reply = ask(server.base_url, [{"role": "user", "content": "Which?"}])
        assert reply.text == "The number is 48213."
        assert (reply.prompt_tokens, reply.new_tokens, len(reply.times)) == (7, 3, 3)
        with pytest.raises(HataError, match="expected text and its usage"):
            ask(server.base_url, [{"role": "user", "content": "Which?"}], max_tokens=1)
