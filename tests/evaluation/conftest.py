"""A tokenizer and a server that need no model: words as tokens, and Python's own HTTP server."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest


class WordTokenizer:
    """One token per word or sign; a chat template that adds five tokens around the content."""

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        assert add_special_tokens is False
        return {"input_ids": [len(word) for word in re.findall(r"\w+|[^\w\s]", text)]}

    def apply_chat_template(
        self, messages: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        assert not tokenize
        assert add_generation_prompt
        (message,) = messages
        return f"system helps {message['role']} {message['content']} end assistant"


@pytest.fixture
def tokenizer() -> WordTokenizer:
    return WordTokenizer()


FAKE_SERVER = """
import argparse, json, os, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer

parser = argparse.ArgumentParser()
parser.add_argument("--host"), parser.add_argument("--port", type=int)
parser.add_argument("--busy-for", type=float, default=0)  # seconds of answering 503
parser.add_argument("--exit-code", type=int)
parser.add_argument("--deaf", action="store_true")        # listens never
parser.add_argument("--child-pid-file")                   # spawn a child as SGLang does
parser.add_argument("--counters", default="null")
args = parser.parse_args()
print("reading", os.environ.get("FAKE_SETTING", "no setting"), flush=True)
if args.child_pid_file:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(args.child_pid_file, "w") as stream:
        stream.write(str(child.pid))
if args.exit_code is not None:
    print("last words of the server", flush=True)
    sys.exit(args.exit_code)
if args.deaf:
    time.sleep(600)
start = time.monotonic()
CHUNKS = ["The number", " is", " 48213."]


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *words):
        pass

    def answer(self, body, kind="application/json"):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/health":
            busy = time.monotonic() - start < args.busy_for
            self.send_response(503 if busy else 200)
            self.end_headers()
        elif self.path == "/server_info":
            state = {"hata": json.loads(args.counters)} if args.counters != "null" else {}
            self.answer(json.dumps({"internal_states": [state]}).encode())
        else:
            self.send_error(404)

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert request["temperature"] == 0 and request["stream"]
        words = CHUNKS if request["max_tokens"] >= 3 else []
        base = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "default"}
        deltas = [{"role": "assistant", "content": ""}, *({"content": word} for word in words)]
        events = [{**base, "choices": [{"index": 0, "delta": delta}]} for delta in deltas]
        usage = {"prompt_tokens": 7, "completion_tokens": len(words), "total_tokens": 10}
        events.append({**base, "choices": [], "usage": usage})
        lines = [f"data: {json.dumps(e)}\\n\\n" for e in events] + ["data: [DONE]\\n\\n"]
        self.answer("".join(lines).encode(), "text/event-stream")


HTTPServer((args.host, args.port), Handler).serve_forever()
"""


@pytest.fixture
def fake_server(tmp_path: Path) -> list[str]:
    """Command of a server that needs no model; see its flags above."""
    path = tmp_path / "fake_server.py"
    path.write_text(FAKE_SERVER)
    return [sys.executable, str(path)]
