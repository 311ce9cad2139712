import pytest

from hata_sglang.evaluation.client import Client, ClientError, Reply
from hata_sglang.evaluation.server import free_port

MESSAGES = [{"role": "user", "content": "How many?"}]


def test_asks_greedily_through_the_chat_api(client, fake):
    reply = client.chat(MESSAGES, 7, ignore_eos=True)
    assert (reply.text, reply.prompt_tokens, reply.new_tokens) == ("The number is 42.", 100, 5)
    assert len(reply.times) == 2
    assert sorted(reply.times) == list(reply.times)
    ((path, body),) = fake.requests
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "default",
        "temperature": 0,
        "max_tokens": 7,
        "messages": MESSAGES,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }


def test_reply_times_leave_the_prefill_out():
    reply = Reply("a b c", prompt_tokens=9, new_tokens=3, times=(10.0, 10.5, 11.0))
    assert reply.gaps_s == [0.5, 0.5]
    assert reply.tokens_per_s == 2.0


def test_no_content_is_an_empty_answer(client, fake):
    fake.answer = None
    reply = client.chat(MESSAGES, 7)
    assert (reply.text, reply.times) == ("", ())


def test_an_answer_without_its_usage_is_an_error(client, fake):
    fake.usage = None
    with pytest.raises(ClientError, match=r"expected text and its usage, found \['The n"):
        client.chat(MESSAGES, 7)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/generate"])
def test_a_refusal_says_what_the_server_said(client, fake, path):
    fake.fail_after = 0
    with pytest.raises(ClientError, match=rf"{path}: expected an answer, found HTTP 500: .*memory"):
        client.chat(MESSAGES, 7) if "chat" in path else client.request(path, {})
    assert len(fake.requests) == 1  # a second try would be counted, too


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/server_info"])
def test_an_answer_that_breaks_off_is_an_error(client, fake, path):
    fake.cut = True
    with pytest.raises(ClientError, match=rf"{path}: expected .*, found "):
        client.chat(MESSAGES, 7) if "chat" in path else client.request(path)


def test_no_server_is_an_error():
    client = Client(f"http://127.0.0.1:{free_port()}")
    assert not client.ready()
    with pytest.raises(ClientError, match="expected a running server"):
        client.counters()


def test_another_answer_than_sglangs_is_an_error(client, monkeypatch):
    for answer in ("<html>", {"status": "ok"}):
        monkeypatch.setattr(client, "request", lambda path, answer=answer: answer)
        with pytest.raises(ClientError, match="server_info: expected SGLang's, found"):
            client.counters()


def test_counters_tell_hata_from_dense(client, fake):
    assert client.counters() is None
    fake.be_sparse()
    assert client.counters()["decode_steps"] == 0
