"""`bench serve` against servers of our own: the load, its measurements, failures, what is done."""

import csv
import sys
import textwrap
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import pytest

from hata_sglang.bench import serve
from hata_sglang.bench.load import send, speed
from hata_sglang.bench.serve import COLUMNS, KEYS, run_arms
from hata_sglang.bench.serve_arms import ServeArm
from hata_sglang.bench.workloads import Workload
from hata_sglang.errors import HataError
from hata_sglang.evaluation.results import ResultFile
from hata_sglang.evaluation.server import ServerProcess

OUTPUT = 8
ASKED = [Workload("one", 1, 64, OUTPUT), Workload("shared", 3, 40, OUTPUT, question=8)]

#: SGLang's HTTP, as far as a run needs it: streams of tokens, counters, a cache that is flushed.
FAKE = """
import json, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODE, PORT = sys.argv[1], int(sys.argv[-1])
if MODE == "dead":
    sys.exit("the pool is too small")
cache, lock = [], threading.Lock()
hata = {"tokens_attended": 0, "tokens_in_context": 0}

class Handler(BaseHTTPRequestHandler):
    def answer(self, text):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self):
        state = {"memory_usage": {"token_capacity": 5000}}
        if MODE not in ("stock", "plain"):
            state["hata"] = hata
        self.answer(json.dumps({"internal_states": [state]}))

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.startswith("/flush_cache"):
            cache.clear()
            return self.answer('"Cache flushed."')
        asked = json.loads(body or "{}")
        prompt, count = asked["input_ids"], asked["sampling_params"]["max_new_tokens"]
        assert asked["sampling_params"]["ignore_eos"] and asked["stream"]
        if MODE == "broken" and len(prompt) == 48:
            return self.send_error(500, "out of memory")
        with lock:
            cached = max((len(old) for old in cache if prompt[: len(old)] == old), default=0)
            cache.append(prompt)
            if MODE != "idle":
                hata["tokens_in_context"] += 4 * len(prompt)
                hata["tokens_attended"] += len(prompt)
        self.send_response(200)
        self.end_headers()
        for made in range(1, count + (MODE != "short")):
            meta = {"completion_tokens": made, "cached_tokens": cached}
            chunk = json.dumps({"text": "5 " * made, "meta_info": meta})
            self.wfile.write(f"data: {chunk}\\n\\n".encode())
            self.wfile.flush()
            time.sleep(0.02)
        self.wfile.write(b"data: [DONE]\\n\\n")

    def log_message(self, *_):
        pass

ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
"""


@pytest.fixture
def command(tmp_path):
    script = tmp_path / "fake.py"
    script.write_text(textwrap.dedent(FAKE))
    return [sys.executable, str(script)]


@pytest.fixture
def go(tmp_path, monkeypatch, command, capsys):
    monkeypatch.setattr(serve, "ServerProcess", partial(ServerProcess, command=command))
    path = tmp_path / "serve.csv"

    def run(*modes):
        arms = [
            ServeArm(mode, "flashinfer" if mode == "stock" else "hata", "flashinfer", (mode,))
            for mode in modes
        ]
        failed = run_arms(
            arms,
            ASKED,
            ResultFile(path, COLUMNS, KEYS),
            model="m",
            weights="dummy weights",
            vocabulary=100,
        )
        said = capsys.readouterr().out
        with path.open() as stream:
            return failed, list(csv.DictReader(stream)), said

    return run


def test_rows(go):
    failed, rows, said = go("stock", "sparse")
    assert failed == [], said
    assert [(row["arm"], row["workload"]) for row in rows] == [
        (arm, workload) for arm in ("stock", "sparse") for workload in ("one", "shared")
    ]
    for row in rows:
        shared = row["workload"] == "shared"
        assert (row["users"], row["prompt_tokens"]) == (("3", "48") if shared else ("1", "64"))
        assert int(row["output_tokens"]) == OUTPUT * int(row["users"])
        # The document was read before the users came; nobody else finds anything.
        assert int(row["cached_tokens"]) == (3 * 40 if shared else 0)
        assert 0 < float(row["ttft_p50_s"]) <= float(row["ttft_max_s"])
        assert (row["pool_tokens"], row["weights"]) == ("5000", "dummy weights")
        if not shared:  # a busy machine may let one user end before another begins
            assert float(row["itl_p50_ms"]) <= float(row["itl_p99_ms"])
            assert float(row["decode_tokens_per_s"]) > 0
            assert row["note"] == ""
        assert row["share_read"] == ("" if row["arm"] == "stock" else "0.25")
        for column in ("commit", "date", "device", "torch", "triton", "sglang", "flashinfer"):
            assert row[column], column
    one, shared = rows[:2]
    assert one["prefill_s"] == one["ttft_max_s"]
    assert shared["prefill_s"] != shared["ttft_max_s"]
    assert "arm=sparse model=m weights=dummy weights workload=one" in said


def test_arms_that_fail_do_not_end_the_others(go):
    failed, rows, said = go("dead", "broken", "idle", "plain", "short", "stock")
    assert failed == ["dead", "broken", "idle", "plain", "short"]
    assert [(row["arm"], row["workload"]) for row in rows] == [
        ("broken", "one"),
        ("stock", "one"),
        ("stock", "shared"),
    ]
    _, dead, broken, idle, plain, short = said.split(" failed (log in ")
    assert "exit code 1" in dead
    assert "the pool is too small" in dead
    assert "expected 8 tokens, found" in broken
    assert "out of memory" in broken
    # A run that was dense must never be a row of hata's.
    assert "one 1x64: hata's counters say that it decoded nothing" in idle
    assert "expected hata's counters in its server alone" in plain
    assert "expected 8 tokens, found 7" in short


def test_done_workloads_are_not_run_again(go):
    _, first, _ = go("stock")
    _, rows, said = go("stock", "sparse")
    assert rows[:2] == first
    assert len(rows) == 4
    assert said.startswith("stock: all 2 rows are in ")


def test_a_server_that_is_gone(command):
    with ServerProcess(["stock"], command=command) as server:
        (answer,) = send(server.base_url, [[5, 6, 7]], 3)
        assert answer.output_len == 3
        assert len(answer.itl) == 2
    with pytest.raises(HataError, match="expected 3 tokens"):
        send(server.base_url, [[5, 6, 7]], 3)


def answer(start, times, cached=0):
    """An answer whose tokens came at `times`."""
    gaps = [after - before for before, after in pairwise(times)]
    return SimpleNamespace(
        start_time=start,
        ttft=times[0] - start,
        itl=gaps,
        output_len=len(times),
        cached_tokens=cached,
    )


def test_steady_state_is_from_the_last_start_to_the_first_end():
    early = answer(0.0, [1.0, 3.0, 3.125, 3.25, 3.375])
    late = answer(0.5, [3.0, 3.125, 3.25, 3.375, 3.5], cached=96)
    found = speed([early, late])
    assert found["ttft_p50_s"] == pytest.approx(1.75)
    assert found["ttft_max_s"] == pytest.approx(2.5)
    assert found["steady_s"] == pytest.approx(0.375)
    # Three steps of both; the stall of the early one before 3.0 s is not decoding.
    assert found["decode_tokens_per_s"] == pytest.approx(6 / 0.375)
    assert found["itl_p50_ms"] == pytest.approx(125)
    assert found["itl_p99_ms"] == pytest.approx(125)
    assert (found["output_tokens"], found["cached_tokens"]) == (10, 96)


def test_no_steady_state():
    found = speed([answer(0.0, [1.0, 1.1]), answer(0.0, [5.0, 5.1])])
    assert found["decode_tokens_per_s"] is found["itl_p50_ms"] is None
    assert found["steady_s"] == 0
    assert found["ttft_p50_s"] == 3


@pytest.mark.parametrize("file", ["serve.csv", "serve_h200.csv"])
def test_committed_rows_have_the_columns_of_today(repo_root, file):
    with (repo_root / "benchmarks/data" / file).open() as stream:
        assert next(csv.reader(stream))[: len(COLUMNS)] == list(COLUMNS)
