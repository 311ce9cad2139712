"""What stops a launch: an SGLang that is not as the seams expect it, or a GPU that cannot."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from hata_sglang.config import HataConfig
from hata_sglang.decoding import gpu_buffers
from hata_sglang.decoding.planned import planned_bytes
from hata_sglang.errors import Refusal
from hata_sglang.seams import cpu_preview
from hata_sglang.seams.session import Session
from hata_sglang.shape import ModelShape
from hata_sglang.weights.auto import ServedModel
from hata_sglang.weights.encoders import load_encoders

SHAPE = ModelShape(num_layers=3, num_heads=8, num_kv_heads=2, head_dim=64, context_len=32768)


@pytest.fixture(autouse=True, scope="module")
def sglang_imports():
    cpu_preview.enable()


def make_session(
    method: str = "random", bits: int | None = None, attend: str = "auto", **shape
) -> Session:
    shape = replace(SHAPE, **shape)
    settings = {"method": method, "budget": 128, "dense_layers": [0], "attend": attend} | (
        {"bits": bits} if bits else {}
    )
    config = HataConfig.parse(settings)
    loaded = load_encoders(config.resolve(3, shape.context_len), shape, ServedModel(None))
    return Session(config, shape, loaded.plans, loaded.encoders)


# --- places that are patched


def test_a_place_that_sglang_lacks_is_refused_before_a_spawn(monkeypatch):
    from hata_sglang.seams import hooks

    hooks.require_places()
    gone = hooks.HOOKS[0]._replace(target="sglang.srt.mem_cache.gone.Pool.build")
    monkeypatch.setattr(hooks, "HOOKS", (gone, *hooks.HOOKS[1:]))
    with pytest.raises(Refusal) as refusal:
        hooks.require_places()
    assert len(refusal.value.problems) == 1
    assert "expected sglang.srt.mem_cache.gone.Pool.build to patch" in str(refusal.value)


def test_a_hook_that_did_not_apply_is_refused(monkeypatch):
    """No hook of this process was applied: each of them is named."""
    from hata_sglang.seams import hooks

    with pytest.raises(Refusal) as refusal:
        hooks.require_applied()
    for hook in hooks.HOOKS:
        assert f"expected {hook.target} to be patched, found not so" in str(refusal.value)
    monkeypatch.setattr(hooks, "_find", lambda place: SimpleNamespace(__wrapped__=place))
    hooks.require_applied()


def test_a_scheduler_whose_backend_has_no_hata_is_stopped(monkeypatch):
    from hata_sglang.metrics import Metrics
    from hata_sglang.seams import hooks

    metrics, scheduler = Metrics(), SimpleNamespace(model_config=None)
    monkeypatch.setattr(hooks, "METRICS", metrics)
    monkeypatch.setattr(hooks.Session, "of", lambda model_config: None)
    hooks._require_attached(None, scheduler)  # a stock server
    monkeypatch.setattr(hooks.Session, "of", lambda model_config: make_session())
    with pytest.raises(Refusal, match="expected a decode backend among flashinfer, fa3"):
        hooks._require_attached(None, scheduler)
    metrics.serve(make_session().facts(), {}, ())
    hooks._require_attached(None, scheduler)


def test_hooks_leave_a_stock_server_alone(monkeypatch):
    from hata_sglang.metrics import Metrics
    from hata_sglang.seams import hooks

    monkeypatch.setattr(hooks, "METRICS", Metrics())
    model_config = torch.nn.Module()  # anything that can be a weak key
    model_config.hf_config = SimpleNamespace()
    server = SimpleNamespace(model_config=model_config, is_draft_worker=False)
    assert hooks._cell_size(1000, None, server, 3) is None
    assert hooks._available_bytes(1000, server) is None
    assert hooks._no_fused_writer(lambda: True)
    state = SimpleNamespace(internal_state={})
    assert hooks._internal_state(state).internal_state == {}


# --- arguments


def arguments(**changed):
    from hata_sglang.seams.validate import ALLOWED

    return SimpleNamespace(**{name: allowed[0] for name, allowed in ALLOWED.items()} | changed)


def test_an_argument_that_sglang_renamed_is_refused(monkeypatch):
    from hata_sglang.seams import validate

    assert validate._arguments(arguments()) == []
    renamed = arguments()
    del renamed.enable_lora
    (problem,) = validate._arguments(renamed)
    assert "expected an argument enable_lora, found none" in str(problem)


@pytest.mark.parametrize(("release", "problems"), [(0, 0), (1, 1)], ids=["oldest", "newest"])
def test_an_argument_of_later_releases_may_be_missing_in_earlier_ones(
    monkeypatch, release, problems
):
    from hata_sglang.seams import validate, versions

    monkeypatch.setattr(versions, "SGLANG", versions.SUPPORTED[release])
    args = arguments()
    del args.enable_kv_cache_sharding
    assert len(validate._arguments(args)) == problems


@pytest.mark.parametrize("error", [TypeError, AttributeError, ImportError])
def test_an_error_that_is_not_of_the_checkpoint_is_not_swallowed(monkeypatch, tmp_path, error):
    from sglang.srt.configs.model_config import ModelConfig

    from hata_sglang.seams import versions

    def fail(args):
        raise error("not as it was")

    args = SimpleNamespace(model_path=str(tmp_path))
    monkeypatch.setattr(ModelConfig, "from_server_args", fail)
    with pytest.raises(error):
        versions.early_model_config(args)
    monkeypatch.setattr(ModelConfig, "from_server_args", lambda args: int("no number"))
    assert versions.early_model_config(args) is None


# --- limits of a GPU

GROUP, CONTEXT = "model's query heads per KV head", "--context-length"
LIMITS = [
    ({}, []),
    ({"head_dim": 96}, ["model's head_dim: expected 64 or 128 or 256 on a GPU, found 96"]),
    (
        {"num_heads": 130, "num_kv_heads": 2},
        [f"{GROUP}: expected at most 64 for a sparse layer on a GPU, found 65"],
    ),
    (
        {"method": "exact", "num_heads": 34},
        [f"{GROUP}: expected at most 16 for method exact on a GPU, found 17"],
    ),
    ({"num_heads": 34}, []),
    (
        {"context_len": 2**21},
        [f"{CONTEXT}: expected at most 2097151 tokens with these codes on a GPU, found 2097152"],
    ),
    ({"method": "streaming", "context_len": 2**21}, []),
]


@pytest.mark.parametrize(("changed", "problems"), LIMITS)
def test_limits_of_a_gpu(changed, problems):
    from hata_sglang.seams.validate import device_limits

    assert [str(problem) for problem in device_limits(make_session(**changed))] == problems


def test_a_longest_context_can_be_ranked():
    session = make_session(context_len=2**21 - 1)
    for encoder in session.encoders.values():
        gpu_buffers.rank_sizes(encoder, gpu_buffers.most_tokens(encoder), 512)
        with pytest.raises(ValueError, match="width"):
            gpu_buffers.rank_sizes(encoder, gpu_buffers.most_tokens(encoder) + 1, 512)


@pytest.mark.parametrize(
    ("backend", "requests", "line"),
    [
        ("full", None, None),
        ("disabled", 16, None),
        ("disabled", None, "--max-running-requests: expected a number"),
        (
            "breakable",
            16,
            "--cuda-graph-backend-decode: expected full or disabled, found breakable",
        ),
    ],
)
def test_graphs_of_decode_steps(monkeypatch, backend, requests, line):
    from hata_sglang.seams import validate

    monkeypatch.setattr(validate.versions, "resolved", lambda args: args)
    graphs = SimpleNamespace(decode=SimpleNamespace(backend=backend, bs=None, max_bs=8))
    args = SimpleNamespace(max_running_requests=requests, cuda_graph_config=graphs)
    graphs.prefill = SimpleNamespace(backend="full")
    session = make_session()
    found = validate._graphs(args, session)
    assert len(found) == (line is not None)
    assert all(line in str(problem) for problem in found)
    assert validate.versions.decode_graph_max_bs(args) == (0 if backend == "disabled" else 8)
    if line is None:
        summed = replace(session, left_out={2: torch.rand(8, 8)})
        (problem,) = validate._graphs(args, summed)
        expected = "--cuda-graph-backend-prefill: expected another, or left_out: none in the YAML"
        assert str(problem) == f"{expected}, found full"
        graphs.prefill.backend = "breakable"
        assert validate._graphs(args, summed) == []


def test_plane_weights_of_another_kind_are_refused_on_a_cpu():
    from hata_sglang.seams import validate

    session = make_session()
    assert validate.cpu_limits(session) == []
    session.encoders[1].plane_weights = (1, 3)
    (problem,) = validate.cpu_limits(session)
    assert "powers of 2, on a CPU, found (1, 3)" in str(problem)


@pytest.mark.parametrize(("captured", "requests"), [(8, None), (0, 16), (8, 16), (8, 4)])
@pytest.mark.parametrize("method", ["random", "exact"])
@pytest.mark.parametrize("attend", ["auto", "flashinfer"])
def test_memory_beside_the_pool(monkeypatch, attend, method, captured, requests):
    """As much as encoders and the buffers of graphs and of eager steps take when they are made."""
    from hata_sglang.seams import workspace

    session = make_session(method, attend=attend)
    gpu = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(workspace.versions, "resolved", lambda args: args)
    monkeypatch.setattr(workspace.versions, "decode_graph_max_bs", lambda args: captured)
    configurator = SimpleNamespace(
        device="cuda",
        is_draft_worker=False,
        server_args=SimpleNamespace(max_running_requests=requests),
        model_config=SimpleNamespace(dtype=torch.bfloat16),
    )
    found = workspace.workspace_bytes(configurator, session)
    encoders = [e.to("cpu", torch.bfloat16) for e in session.encoders.values()]
    expected = sum(t.nbytes for e in encoders for t in e._tensors.values())
    for rows in {captured, max(captured, requests or 0)} - {0}:
        expected += workspace._step_bytes(session, rows, torch.device("cuda"))
    assert found == expected
    summed = replace(session, left_out={1: torch.rand(8, 8), 2: torch.rand(8, 8)})
    sums = 2 * (1 + (requests or 4096)) * 2 * 64 * 4  # layers, requests, KV heads, D, bytes
    assert workspace.workspace_bytes(configurator, summed) == found + sums
    if attend == "flashinfer":
        auto = workspace.workspace_bytes(configurator, make_session(method))
        more = [
            planned_bytes(session.sparse_plans, SHAPE, rows, torch.device("cuda"))
            for rows in {captured, max(captured, requests or 0)} - {0}
        ]
        assert found == auto + sum(more)
    configurator.device = "cpu"
    assert workspace.workspace_bytes(configurator, session) == 0


def test_scratch_of_encoders_is_counted():
    from hata_kernels.encoders import AsymmetricEncoder

    tensors = {
        "key_weight": torch.randn(2, 64, 128),
        "key_bias": torch.randn(2, 128),
        "query_weight": torch.randn(2, 256, 128),
        "query_bias": torch.randn(2, 128),
    }
    encoder = AsymmetricEncoder.from_tensors(tensors, num_kv_heads=2, group=4, head_dim=64)
    scratch = encoder.step_scratch(40)
    held = scratch.partial.nbytes + scratch.arrived.nbytes
    both = {1: encoder, 2: encoder}
    assert gpu_buffers.scratch_bytes(both, 40) == held > 0  # layers share it
