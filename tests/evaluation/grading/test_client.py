import pytest

from hata_sglang.evaluation.client import Client, ClientError
from hata_sglang.evaluation.server import free_port
from hata_sglang.evaluation.tasks import Sample


def sample(**changes):
    given = {
        "task": "t",
        "index": 0,
        "prompt": "How many?",
        "references": ("42",),
        "new_tokens": 7,
        "metric": "string_match_all",
        "tokens": 9,
    }
    return Sample(**(given | changes))


def test_asks_greedily_through_the_chat_api(client, fake):
    answer = client.ask(sample())
    assert (answer.text, answer.prompt_tokens, answer.new_tokens) == ("The number is 42.", 100, 5)
    ((path, body),) = fake.requests
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "default",
        "temperature": 0,
        "max_tokens": 7,
        "messages": [{"role": "user", "content": "How many?"}],
    }


def test_an_opening_starts_the_assistants_message(client, fake):
    client.ask(sample(opening="It is"))
    ((_, body),) = fake.requests
    assert body["messages"][1:] == [{"role": "assistant", "content": "It is"}]
    assert body["continue_final_message"] is True


def test_without_a_chat_template_the_prompt_goes_bare(client, fake):
    answer = client.ask(sample(opening="It is", info={"chat": 0}))
    ((path, body),) = fake.requests
    assert path == "/v1/completions"
    assert body["prompt"] == "How many?It is"
    assert answer.text == "The number is 42."


def test_no_content_is_an_empty_answer(client, fake):
    fake.answer = None
    assert client.ask(sample()).text == ""


def test_another_form_of_answer_is_an_error(client, fake):
    fake.reply = {"choices": []}
    with pytest.raises(ClientError, match=r"expected one choice .*found \{\"choices\": \[\]\}"):
        client.ask(sample())


def test_a_refusal_says_what_the_server_said(client, fake):
    fake.fail_after = 0
    with pytest.raises(ClientError, match=r"HTTP 500: .*out of memory"):
        client.ask(sample())


def test_no_server_is_an_error():
    with pytest.raises(ClientError, match="expected a running server"):
        Client(f"http://127.0.0.1:{free_port()}").counters()


def test_counters_tell_hata_from_dense(client, fake):
    assert client.counters() is None
    fake.be_sparse()
    assert client.counters()["decode_steps"] == 0
