"""A server on a CPU: grammars that work there, and no compiler while it serves."""

from __future__ import annotations

import json
import re
import urllib.error

import pytest

from hata_sglang.seams.cpu_preview import has_cuda_driver

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(has_cuda_driver(), reason="for machines without a GPU"),
]

YAML = """
method: hata
weights: smollm2-135m-instruct-hata-128b
budget: 96
sink: 16
recent: 32
dense_layers: [0, 1]
"""
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
GRAMMARS = {
    "regex": "[0-9]{4}",
    "json_schema": json.dumps({**SCHEMA, "additionalProperties": False}),
    "ebnf": 'root ::= "yes" | "no"',
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Where torch would keep what it compiles; empty when the server starts."""
    return tmp_path_factory.mktemp("inductor")


@pytest.fixture(scope="module")
def client(start, connect, compiled):
    server = start(YAML)
    server.env["TORCHINDUCTOR_CACHE_DIR"] = str(compiled)
    server.env.pop("TORCH_COMPILE_DISABLE", None)
    with server:
        yield connect(server)


def ask(client, text, **sampling):
    answer = client.post("/generate", {"text": text, "sampling_params": sampling})
    return [one["text"] for one in answer] if isinstance(answer, list) else answer["text"]


def test_the_first_requests_wait_for_no_compiler(client, compiled):
    """A repetition penalty or a grammar made torch compile C++ for up to a minute."""
    prompts = ["The capital of France is", "Once upon a time", "One, two, three,"]
    for sampling in (
        {"temperature": 0},
        {"repetition_penalty": 1.2},
        {"temperature": 0.8, "sampling_seed": 1},
        {"regex": "[0-9]{4}"},
    ):
        assert all(ask(client, prompts, max_new_tokens=6, **sampling))
        assert list(compiled.rglob("*.cpp")) == [], sampling
    assert "TORCH_COMPILE_DISABLE=1" in client.server.log_path.read_text(errors="replace")


@pytest.mark.parametrize("kind", GRAMMARS)
def test_grammars_are_kept_and_the_server_lives(client, kind):
    text = ask(client, "Answer: ", temperature=0, max_new_tokens=48, **{kind: GRAMMARS[kind]})
    match kind:
        case "regex":
            assert re.fullmatch("[0-9]{4}", text)
        case "json_schema":
            assert isinstance(json.loads(text)["a"], int)
        case "ebnf":
            assert text in ("yes", "no")
    assert ask(client, "The capital of France is", temperature=0, max_new_tokens=4)


def test_grammars_in_one_batch_with_free_text(client):
    """The mask of one request must not reach its neighbours."""
    body = {
        "text": ["Answer: ", "The capital of France is"],
        "sampling_params": [
            {"temperature": 0, "max_new_tokens": 6, "regex": "[0-9]{4}"},
            {"temperature": 0, "max_new_tokens": 4},
        ],
    }
    bound, free = client.post("/generate", body)
    assert re.fullmatch("[0-9]{4}", bound["text"])
    assert "Paris" in free["text"]


def test_what_the_grammars_do_not_know_is_refused_and_the_server_lives(client):
    tag = {"type": "structural_tag", "format": {"type": "json_schema", "json_schema": SCHEMA}}
    bad = {"structural_tag": json.dumps(tag), "regex": "[0-9", "ebnf": "root ::= ("}
    for kind, value in bad.items():
        with pytest.raises(urllib.error.HTTPError) as error:
            ask(client, "Answer: ", max_new_tokens=4, **{kind: value})
        assert error.value.code == 400, kind
    assert ask(client, "The capital of France is", temperature=0, max_new_tokens=4)
