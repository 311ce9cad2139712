"""SGLang's real server on a GPU with a real model: hata beside the stock backends it stands in for.

``launch/check_gpu.sh`` runs these, several servers at a time.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
import yaml

from hata_sglang.evaluation.arms import demo_config
from hata_sglang.evaluation.server import ServerProcess

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

#: A server for several tests is started by one process of pytest-xdist.
INNER = [
    pytest.param(name, marks=pytest.mark.xdist_group(name))
    for name in ("fa3", "flashinfer", "triton")
]
EACH_INNER = pytest.mark.parametrize("inner", ["fa3", "flashinfer", "triton"])
SPARSE_LAYERS, BUDGET = 28, 256
EAGER = ("--disable-cuda-graph", "--max-running-requests", "16")
METHODS = {
    "hata": {"weights": "smollm2-135m-instruct-hata-128b"},
    "hashattention": {"weights": "smollm2-135m-instruct-hashattention-96b"},
    "asymmetric": {"weights": "smollm2-135m-instruct-asymmetric-64b"},
    "random": {"bits": 128},
    "exact": {},
    "streaming": {},
}
#: Log-probabilities of bfloat16 kernels differ by less, and so do two tokens that change places.
TOLERANCE = 0.15
#: The same, where one side rounds elsewhere: a prefill of another length, or float32.
ROUNDING = 0.3


def settings(**changed) -> str:
    """The demo's YAML with other settings."""
    return yaml.safe_dump(yaml.safe_load(demo_config().read_text("utf-8")) | changed)


def generate(server: ServerProcess, ids: list[int], new_tokens: int = 32) -> dict:
    """Greedy tokens of one prompt with their log-probabilities, and those of the best five."""
    body = {
        "input_ids": ids,
        "return_logprob": True,
        "top_logprobs_num": 5,
        "sampling_params": {"temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True},
    }
    reply = requests.post(server.base_url + "/generate", json=body, timeout=600)
    reply.raise_for_status()
    return reply.json()


def compare(stock: dict, ours: dict) -> tuple[int, float, float]:
    """How alike two greedy answers are.

    Returns
    -------
    same : int
        Equal tokens before the first that differs.
    worst : float
        Largest difference of the log-probabilities of these.
    margin : float
        By how much the stock answer preferred its token to the other where they part; 0 where
        they do not.
    """
    same, worst = 0, 0.0
    theirs, mine = (answer["meta_info"] for answer in (stock, ours))
    for place, (a, b) in enumerate(zip(stock["output_ids"], ours["output_ids"], strict=True)):
        if a != b:
            best = {token: value for value, token, _ in theirs["output_top_logprobs"][place]}
            return same, worst, best[a] - best.get(b, float("-inf"))
        values = [info["output_token_logprobs"][place][0] for info in (theirs, mine)]
        same, worst = same + 1, max(worst, abs(values[0] - values[1]))
    return same, worst, 0.0


def hits(server: ServerProcess, facts) -> int:
    """How many hidden facts a server finds, asked all at once."""
    with ThreadPoolExecutor(len(facts)) as pool:
        replies = list(pool.map(lambda fact: fact.ask(server.client), facts))
    return sum(fact.score(reply.text) for fact, reply in zip(facts, replies, strict=True))


def check_share(counters: dict, layers: int = SPARSE_LAYERS) -> None:
    """Every layer that the YAML makes sparse decoded, and read little of long contexts."""
    assert counters["layer_steps"] == layers * counters["decode_steps"] > 0
    assert 0 < counters["tokens_attended"] < 0.06 * counters["tokens_in_context"]


def check_covering(serve, make_prompt, inner: str, *flags: str) -> None:
    """A budget of 8,192 tokens: hata's own kernels rank and attend to every token."""
    prompts = {n: make_prompt(n, n) for n in (5, 100, 1000, 3000, 6000)}

    def answers(server: ServerProcess) -> tuple[dict, dict | None]:
        with server:
            given = {n: generate(server, ids) for n, ids in prompts.items()}
            return given, server.client.counters()

    servers = (
        serve(None, "--attention-backend", inner, *flags),
        serve(settings(budget=8192, inner_backend=inner), *flags),
    )
    with ThreadPoolExecutor() as pool:
        (stock, none), (ours, counters) = pool.map(answers, servers)
    assert none is None
    assert counters["layer_steps"] == SPARSE_LAYERS * counters["decode_steps"]
    assert counters["tokens_attended"] == counters["tokens_in_context"] > 0
    for n in prompts:
        same, worst, margin = compare(stock[n], ours[n])
        print(f"{inner}, {n} tokens: {same} of 32 equal, {worst:.3f} apart, margin {margin:.3f}")
        assert max(worst, margin) < TOLERANCE, f"{n} tokens"


@EACH_INNER
def test_covering_budget_gives_what_stock_gives(serve, make_prompt, record_property, inner):
    record_property("inner", inner)
    check_covering(serve, make_prompt, inner)


@EACH_INNER
def test_eager_covering_budget(serve, make_prompt, record_property, inner):
    record_property("inner", inner)
    check_covering(serve, make_prompt, inner, *EAGER)


@EACH_INNER
def test_eager_sparse_steps(serve, facts, record_property, inner):
    record_property("inner", inner)
    with serve(settings(inner_backend=inner), *EAGER) as server:
        assert hits(server, facts) >= 9
        check_share(server.client.counters())


@pytest.fixture(scope="module", params=INNER)
def sparse(request, serve):
    """The demo's settings: codes of 128 bits, 256 tokens, two dense layers."""
    with serve(settings(inner_backend=request.param)) as server:
        server.inner = request.param
        yield server


@pytest.fixture
def inner(sparse, record_property):
    """Says in the row which inner backend the server has."""
    record_property("inner", sparse.inner)


@pytest.mark.usefixtures("inner")
def test_hidden_facts_are_found_and_little_is_read(sparse, facts):
    assert hits(sparse, facts) >= 9
    counters = sparse.client.counters()
    check_share(counters)
    assert (counters["method"], counters["bits"], counters["layers"]) == ("asymmetric", 128, "2-29")
    assert "hata is on: method asymmetric, 128 bits" in sparse.log_path.read_text()


@pytest.mark.usefixtures("inner")
def test_counters_of_one_request(sparse, make_prompt):
    before = sparse.client.counters()
    generate(sparse, make_prompt(3000, 7), 16)
    after = sparse.client.counters()
    steps = after["decode_steps"] - before["decode_steps"]
    # The first token is the prefill's; the overlap scheduler may begin a step too many.
    assert steps in (15, 16)
    layer_steps = steps * SPARSE_LAYERS
    assert after["layer_steps"] - before["layer_steps"] == layer_steps
    assert after["tokens_attended"] - before["tokens_attended"] == layer_steps * BUDGET
    context = sum(range(3001, 3001 + steps)) * SPARSE_LAYERS
    assert after["tokens_in_context"] - before["tokens_in_context"] == context
    assert after["tokens_encoded"] - before["tokens_encoded"] == 3000 + steps


@pytest.mark.usefixtures("inner")
def test_cached_prefix_keeps_its_codes(sparse, make_prompt):
    ids = make_prompt(4000, 8)
    cold = generate(sparse, ids)
    middle = sparse.client.counters()["tokens_encoded"]
    cached = generate(sparse, ids)
    assert sparse.client.counters()["tokens_encoded"] - middle <= 1 + 32
    assert cached["meta_info"]["cached_tokens"] >= 3990
    _, worst, margin = compare(cold, cached)
    assert max(worst, margin) < ROUNDING


@pytest.mark.usefixtures("inner")
def test_many_requests_about_one_document(sparse, facts_of_one_document):
    # From four rows on those that share a prefix are ranked together.
    assert hits(sparse, facts_of_one_document) >= 9


@pytest.mark.parametrize("method", METHODS)
def test_method_in_a_server(serve, facts, make_prompt, model_log_probabilities, method):
    base = {k: v for k, v in yaml.safe_load(settings()).items() if k not in ("weights", "bits")}
    with serve(yaml.safe_dump(base | {"method": method} | METHODS[method])) as server:
        score = hits(server, facts)
        print(f"{method}: {score} of {len(facts)}")
        check_share(server.client.counters())
        assert server.client.counters()["method"] == method
        if method in ("exact", "asymmetric"):
            assert score >= 9
        # Long requests leave nothing behind that a short one, which the budget covers, would see.
        short = make_prompt(40, 9)
        answer = generate(server, short)
    theirs = model_log_probabilities(short, answer["output_ids"])
    ours = [value for value, *_ in answer["meta_info"]["output_token_logprobs"]]
    assert ours == pytest.approx(theirs, abs=ROUNDING)


@pytest.mark.parametrize("flags", [(), EAGER], ids=["graphs", "eager"])
def test_attention_by_flashinfer(serve, facts, flags):
    with serve(settings(attend="flashinfer"), *flags) as server:
        assert hits(server, facts) >= 9
        check_share(server.client.counters())
        assert server.client.counters()["attend"] == "flashinfer"


LAUNCHERS = {
    "hata_sglang.launch_server": (),
    "sglang.launch_server": ("--attention-backend", "hata"),
}


@pytest.mark.alone
@pytest.mark.parametrize("module", LAUNCHERS)
def test_launch_line_of_the_readme(serve, facts, module):
    """SGLang's defaults: it chooses the inner backend, graphs of prefill and decode, the memory."""
    with serve(settings(), *LAUNCHERS[module], shared=False, module=module) as server:
        assert hits(server, facts) >= 9
        check_share(server.client.counters())
