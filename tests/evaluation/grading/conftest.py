"""A server with SGLang's paths that needs no model, and a tokenizer of characters."""

from __future__ import annotations

import json
import pickle
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import torch

from hata_sglang.evaluation.client import Client

VOCABULARY = 50


class CharTokenizer:
    """One token per character; a chat template of ten characters around the content."""

    bos_token_id = None

    def __call__(self, text, *, add_special_tokens):
        return {"input_ids": [ord(sign) for sign in text]}

    def decode(self, ids, *, skip_special_tokens):
        return "".join(map(chr, ids))

    def apply_chat_template(self, messages, *, tokenize, add_generation_prompt):
        assert not tokenize
        assert add_generation_prompt
        (message,) = messages
        return f"<user>{message['content']}<a:>"


@pytest.fixture
def chars():
    return CharTokenizer()


def step_logits(prefix) -> torch.Tensor:
    """Logits of the fake model after a prefix of token ids: any, but always the same."""
    seed = sum((place + 1) * token for place, token in enumerate(prefix))
    return 3 * torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def logits_of():
    """The fake model: logits of a prefix."""
    return step_logits


def generate(body, ids_lag: int) -> dict:
    """Decode as SGLang's sampler does, with the request's logit processor; float32."""
    processor = pickle.loads(bytes.fromhex(json.loads(body["custom_logit_processor"])["callable"]))
    outputs, meta = [], {"output_token_logprobs": [], "output_token_ids_logprobs": []}
    for _ in range(body["sampling_params"]["max_new_tokens"]):
        logits = step_logits(body["input_ids"] + outputs)[None].clone()
        seen = outputs[: max(len(outputs) - ids_lag, 0)]  # what overlap scheduling has by then
        params = body["sampling_params"]["custom_params"] | {
            "__req__": SimpleNamespace(output_ids=seen)
        }
        logits = processor()(logits, [params])
        logprobs = logits.log_softmax(-1)[0].clamp(min=torch.finfo(torch.float32).min)
        token = int(logits.argmax())
        outputs.append(token)
        meta["output_token_logprobs"].append([logprobs[token].item(), token, None])
        wanted = [[logprobs[i].item(), i, None] for i in body["token_ids_logprob"]]
        meta["output_token_ids_logprobs"].append(wanted)
    return {"output_ids": outputs, "meta_info": meta}


class FakeServer:
    """What it was asked is in `requests`; what it says can be set."""

    def __init__(self):
        self.requests = []
        self.counters = None
        self.attended_share = 0.1  # of what a sparse server reads
        self.answer = "The number is 42."
        self.usage = {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105}
        self.ids_lag = 0
        self.cut = False  # end every answer before its end
        self.fail_after = None  # requests until HTTP 500
        self.lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *words):
                pass

            def send(self, code, value, kind="application/json"):
                body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body) + (100 if fake.cut else 0)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                state = {} if fake.counters is None else {"hata": dict(fake.counters)}
                self.send(200, {"internal_states": [state], "tokenizer_path": "/nowhere"})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with fake.lock:
                    fake.requests.append((self.path, body))
                    number = len(fake.requests)
                if fake.fail_after is not None and number > fake.fail_after:
                    return self.send(500, {"message": "out of memory"})
                if self.path == "/generate":
                    fake.count(len(body["sampling_params"]["custom_params"]["force"]))
                    return self.send(200, generate(body, fake.ids_lag))
                fake.count(5)
                answer = fake.answer(body) if callable(fake.answer) else fake.answer
                words = [answer[:5], answer[5:]] if answer else []
                deltas = [{"role": "assistant", "content": None}, *({"content": w} for w in words)]
                events = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
                if fake.usage is not None:
                    events.append({"choices": [], "usage": fake.usage})
                lines = [f"data: {json.dumps(event)}\n\n" for event in events]
                return self.send(200, "".join(lines) + "data: [DONE]\n\n", "text/event-stream")

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        serve = self.http.serve_forever
        threading.Thread(target=serve, args=(0.01,), daemon=True).start()  # seconds to its end

    def count(self, new_tokens):
        if self.counters is None:
            return
        with self.lock:
            self.counters["decode_steps"] += new_tokens - 1
            self.counters["layer_steps"] += new_tokens - 1
            self.counters["tokens_in_context"] += (new_tokens - 1) * 1000
            self.counters["tokens_attended"] += round((new_tokens - 1) * 1000 * self.attended_share)

    def be_sparse(self):
        tokens = ("tokens_in_context", "tokens_attended", "tokens_encoded")
        self.counters = dict.fromkeys(("decode_steps", "layer_steps", *tokens), 0)


@pytest.fixture
def fake():
    server = FakeServer()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def client(fake):
    return Client(fake.url, timeout=20)
