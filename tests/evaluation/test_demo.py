import io
import json
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from rich.console import Console

from hata_sglang.demo import __main__ as demo
from hata_sglang.errors import HataError
from hata_sglang.evaluation.client import Reply
from hata_sglang.evaluation.server import ServerProcess
from hata_sglang.evaluation.sparsity import Reading
from hata_sglang.evaluation.tasks import Sample

SAMPLE = Sample("niah_single_2", "Which?", ("48213",), 8, "It is", depth=0.5, tokens=7)
DENSE = demo.Measurement(
    Reply("It is 48213.", 6000, 5, (20.0, 20.5)),
    Reply("x", 6000, 3, (1.0, 1.5, 2.0)),
    Reply("x", 9, 3, (0.1, 0.3, 0.5)),
    True,
    None,
)
HATA = demo.Measurement(
    Reply("It is 1.", 6000, 5, (21.0, 21.2)),
    Reply("x", 6000, 3, (1.0, 1.25, 1.5)),
    Reply("x", 9, 3, (0.1, 0.31, 0.52)),
    False,
    Reading(steps=40, attended=256.0, context=6016.0, layers=28),
)


def test_own_flags_are_read_and_others_passed_on():
    args, flags = demo.parse(["--tokens", "900", "--mem-fraction-static", "0.5", "--token", "9"])
    assert args.tokens == 900
    assert flags == ["--mem-fraction-static", "0.5", "--token", "9"]


def test_output_shows_answers_reading_and_speed():
    console = Console(width=120, record=True, file=io.StringIO())
    demo.describe("hata", HATA, 30, console)
    console.print(demo.comparison(HATA, DENSE))
    text = console.export_text()
    assert "'It is 1.'  (wrong)" in text
    assert "256 of 6016 tokens per step and KV head (4.3%) in 28 of 30 layers" in text
    rows = [line.split() for line in text.splitlines() if "right" in line or "wrong" in line][-2:]
    assert [[w for w in row if w != "│"] for row in rows] == [
        ["dense", "right", "6000", "20.0", "500.0", "60%", "2.0"],
        ["hata", "wrong", "256", "21.0", "250.0", "16%", "4.0"],
    ]


def test_output_explains_the_ratio():
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(demo.explain(HATA, DENSE))
    text = console.export_text()
    assert "hata decodes at 2.00x the speed of dense" in text
    assert "takes 60% of a step of dense and 16% of one of hata" in text
    assert "takes 200.0 and 210.0 ms on these servers" in text
    assert "without a context dense is 2.50x as fast" in text


def test_a_context_that_costs_nothing():
    """On a busy machine a short step may take longer."""
    slow = DENSE._replace(short=Reply("x", 9, 3, (0.1, 0.9, 1.7)))
    assert slow.context_share == 0
    assert "cannot be told: after a prompt of a few tokens dense took no less, 800.0 ms" in (
        demo.explain(HATA, slow)
    )


def test_measures_one_server(fake_server):
    with ServerProcess(command=fake_server) as server:
        result = demo.measure(server.client, SAMPLE, 32)
    assert result.right
    assert result.read is None
    assert result.step_ms == pytest.approx(1e3 * sum(result.speed.gaps_s) / 2, rel=1)
    assert result.short_step_ms == pytest.approx(1e3 * sum(result.short.gaps_s) / 2, rel=1)
    assert 0 <= result.context_share < 1


def test_counters_that_stand_still_and_empty_replies_are_refused(fake_server):
    keys = ("decode_steps", "layer_steps", "tokens_in_context", "tokens_attended")
    counters = json.dumps(dict.fromkeys(keys, 3))
    with ServerProcess(["--counters", counters], command=fake_server) as server:
        with pytest.raises(HataError, match="not sparse: 0 sparse steps"):
            demo.measure(server.client, SAMPLE, 32)
        with pytest.raises(HataError, match="expected text, found an empty reply"):
            demo.measure(server.client, SAMPLE, 1)


def test_both_servers_are_asked_and_a_dense_one_is_not_called_sparse(monkeypatch, tokenizer):
    results = {"asymmetric": HATA, "dense": DENSE}
    config = SimpleNamespace(num_hidden_layers=30)
    transformers = SimpleNamespace(
        AutoTokenizer=SimpleNamespace(from_pretrained=lambda model: tokenizer),
        AutoConfig=SimpleNamespace(from_pretrained=lambda model: config),
    )
    monkeypatch.setitem(sys.modules, "transformers", transformers)

    @contextmanager
    def started(arm, *_):
        yield arm, None

    monkeypatch.setattr(demo, "started", started)
    monkeypatch.setattr(demo, "measure", lambda arm, sample, new_tokens: results[arm])
    console = Console(width=200, record=True, file=io.StringIO())
    argv = ["--model-path", "m", "--tokens", "900"]
    demo.run(argv, console)
    text = console.export_text()
    assert "Question: What is the special magic number for" in text
    assert "hata decodes at 2.00x the speed of dense" in text
    results["asymmetric"] = DENSE
    with pytest.raises(HataError, match="not sparse: the server has no counters"):
        demo.run(argv, console)


def test_failure_is_a_message_and_exit_code_2(monkeypatch, capsys):
    def fail(*_):
        raise HataError("no server")

    monkeypatch.setattr(demo, "run", fail)
    monkeypatch.setattr(demo, "exit_on_sigterm", lambda: None)
    assert demo.main([]) == 2
    assert capsys.readouterr().err == "the demo failed: no server\n"
