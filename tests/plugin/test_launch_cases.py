"""Launches with hata up to the point where SGLang would spawn processes.

Everything hata cannot serve is refused there, in one error with exit code 2; what it can serve
passes under the inner backend's name.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hata_sglang.seams.validate import ALLOWED, ENVIRONMENT_OFF, MODEL_OFF
from hata_sglang.seams.versions import has_argument

WORKER = Path(__file__).with_name("launch_cases.py")

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "torch_dtype": "float32",
}

GOOD = "method: random\nbudget: 64\nsink: 4\nrecent: 16\n"
TRAINED = "method: hata\nweights: smollm2-135m-instruct-hata-128b\nbudget: 128\n"

#: Flags that make SGLang ask for what hata refuses.
FLAGS = (
    "--speculative-algorithm NGRAM",
    "--dllm-algorithm LowConfidence",
    "--enable-mixed-chunk",
    "--enable-two-batch-overlap",
    "--enable-pdmux",
    "--enable-torch-compile",
    "--enable-nvidia-megakernel",
    "--enable-amd-monokernel",
    "--tp-size 2",
    "--pp-size 2",
    "--dp-size 2",
    "--attn-dp-size 2",
    "--enable-dp-attention",
    "--dcp-size 2",
    "--attn-cp-size 2",
    "--enable-prefill-cp",
    "--dwdp-size 2",
    "--elastic-ep-backend mooncake",
    "--use-ray",
    "--kv-cache-dtype fp8_e4m3",
    "--prefill-only-disable-kv-cache",
    "--enable-page-major-kv-layout",
    "--enable-unified-memory",
    "--enable-kv-cache-sharding",
    "--enable-hierarchical-cache",
    "--enable-lmcache",
    "--enable-flexkv",
    "--enable-unified-cache-external-linker",
    "--enable-memory-saver",
    "--disaggregation-mode decode",
    "--encoder-only",
    "--language-only",
    "--enable-hisparse",
    "--enable-deterministic-inference",
    "--enable-mis",
    "--is-embedding",
    "--enable-lora",
    "--lora-paths a=/nowhere",
)

#: Backends for prefill that hata does not go with, and the line that must say so.
PREFILL = {
    "hata": "--prefill-attention-backend: expected a stock backend",
    "flex_attention": "inner backend for prefill: expected one of flashinfer",
}

YAMLS = {
    "unknown key": (GOOD + "bugdet: 3\n", "budget"),
    "inner backend of a GPU": (
        GOOD + "inner_backend: flashinfer\n",
        "inner backend for decode on cpu: expected torch_native, found flashinfer",
    ),
    "attention of a GPU": (
        GOOD + "attend: flashinfer\n",
        "attend: expected auto on a CPU, found flashinfer",
    ),
    "missing weights": (TRAINED.replace("smollm2", "no-such"), "no-such-135m"),
    "weights of another model": (TRAINED, "num_hidden_layers"),
    "bits of other weights": (TRAINED + "bits: 64\n", "64"),
    "layer out of range": (GOOD + "layers: {'3-9': {budget: 128}}\n", "3-9"),
    "all dense": (GOOD + "dense_layers: ['0-3']\n", "dense"),
}

GPT_OSS = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}

MODELS = {
    "mla": (
        {
            "architectures": ["DeepseekV2ForCausalLM"],
            "model_type": "deepseek_v2",
            "kv_lora_rank": 16,
            "q_lora_rank": None,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
            "first_k_dense_replace": 4,
        },
        "model: expected multi-head or grouped-query attention, found MLA attention",
    ),
    "encoder-decoder": (
        {"architectures": ["MllamaForConditionalGeneration"]},
        "model: expected a decoder-only model",
    ),
    "multimodal": ({"architectures": ["LlavaLlamaForCausalLM"]}, "model: expected a text model"),
    "sinks": (GPT_OSS, "model: expected attention without learned sinks"),
    "hybrid sliding windows": (GPT_OSS, "model: expected full attention"),
}


def _cases(tmp):
    """Every launch of this file, as `launch_cases.py` reads them."""
    cases = []

    def add(name, yaml=GOOD, extra=(), env=None, model=None, backend="hata", then=None):
        folder = tmp / f"model{len(cases)}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({**LLAMA, **(model or {})}))
        config = tmp / f"{len(cases)}.yaml"
        config.write_text(yaml)
        argv = ["--model-path", str(folder), "--device", "cpu", "--skip-tokenizer-init"]
        argv += ["--load-format", "dummy"]
        after = [*argv, "--attention-backend", then] if then else None
        argv += ["--attention-backend", backend] if backend else []
        argv += [str(config) if word == "YAML" else word for word in extra]
        env = {"HATA_CONFIG": str(config), **(env or {})}
        cases.append({"name": name, "argv": argv, "env": env, "after": after})

    add("good")
    add("stock", backend="torch_native")
    add("stock afterwards", then="torch_native")
    unset = {"HATA_CONFIG": ""}
    add("no config", env=unset)
    add("flag", extra=["--hata-config", "YAML"], env=unset)
    add("flag, stock", extra=["--hata-config", "YAML"], env=unset, backend="torch_native")
    add("flag, no backend", extra=["--hata-config", "YAML"], env=unset, backend=None)
    files = {"in a file": {"attention-backend": "hata"}, "in a file, no backend": {}}
    for number, (name, settings) in enumerate(files.items()):
        yaml, flags = tmp / f"hata{number}.yaml", tmp / f"sglang{number}.yaml"
        yaml.write_text(GOOD)
        flags.write_text(json.dumps({"hata-config": str(yaml), **settings}))
        add(name, extra=["--config", str(flags)], env=unset, backend=None)
    add("two reasons", extra=["--tp-size", "2", "--enable-lora"], yaml="methd: hata\n")
    add("no such model", extra=["--model-path", "/nonexistent/model"])
    for flag in FLAGS:
        add(flag, extra=flag.split())
    for backend in PREFILL:
        add(f"prefill {backend}", extra=["--prefill-attention-backend", backend])
    for name, (yaml, _) in YAMLS.items():
        add(name, yaml=yaml)
    for name in ENVIRONMENT_OFF:
        add(name, env={name: "1"})
    for name, (config, _) in MODELS.items():
        add(name, model=config)
    return cases


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """All launches, run once; by name."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("HATA_")}
    done = subprocess.run(
        [sys.executable, str(WORKER)],
        input=json.dumps(_cases(tmp_path_factory.mktemp("cases"))),
        capture_output=True,
        text=True,
        env={**env, "HF_HUB_OFFLINE": "1"},
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout[done.stdout.index("{") :])


def _refused(result, line):
    assert "hata cannot run:" in result["output"], result["output"][-3000:]
    refusal = result["output"][result["output"].index("hata cannot run:") :]
    assert line in refusal, refusal
    assert "Traceback" not in refusal
    assert result["code"] == 2
    assert "backend" not in result, "the launch went on"


@pytest.mark.parametrize("flag", FLAGS)
def test_flag_is_refused(results, flag):
    name, *value = flag.split()
    if not has_argument(name[2:].replace("-", "_")):
        assert "unrecognized arguments" in results[flag]["output"]
        pytest.skip("this SGLang has no such flag")
    _refused(results[flag], f"  - {name}: expected ")
    if value and "=" not in value[0]:
        _refused(results[flag], f", found {value[0]}")


@pytest.mark.parametrize("backend", PREFILL)
def test_prefill_backend_is_refused(results, backend):
    _refused(results[f"prefill {backend}"], PREFILL[backend])


@pytest.mark.parametrize("name", YAMLS)
def test_yaml_is_refused(results, name):
    _refused(results[name], YAMLS[name][1])


@pytest.mark.parametrize("name", MODELS)
def test_model_is_refused(results, name):
    _refused(results[name], MODELS[name][1])


@pytest.mark.parametrize("name", ENVIRONMENT_OFF)
def test_environment_is_refused(results, name):
    _refused(results[name], f"environment variable {name}: expected not set, found 1")


def test_no_config_is_refused(results):
    _refused(results["no config"], "HATA_CONFIG): expected the path of a YAML file, found nothing")


def test_a_path_without_a_model_is_refused(results):
    line = "--model-path: expected a model's folder, or its name on a hub, found no folder /nonexis"
    _refused(results["no such model"], line)


def test_all_reasons_in_one_error(results):
    output = results["two reasons"]["output"]
    for line in ("--tp-size: expected 1", "--enable-lora: expected not set", "methd"):
        assert line in output[output.index("hata cannot run:") :]


def test_accepted_under_the_inner_name(results):
    good = results["good"]
    assert (good["code"], good["backend"], good["active"]) == (0, "torch_native", "1"), good[
        "output"
    ]


SERVED = {
    "method": "random",
    "bits": 128,
    "budget": "64",
    "layers": "2-3",
    "num_layers": 4,
    "left_out_layers": 0,
    "weights": None,
}


@pytest.mark.parametrize("name", ["good", "flag", "in a file"])
def test_the_configuration_is_in_the_arguments_of_the_server(results, name):
    """Read once: the file is gone before a scheduler opens the session."""
    facts = results[name]["facts"]
    assert facts is not None, results[name]["output"]
    assert facts.pop("config").endswith(".yaml")
    assert facts == SERVED


def test_stock_backend_passes_untouched(results):
    stock = results["stock"]
    assert (stock["code"], stock["backend"], stock["active"]) == (0, "torch_native", None)
    assert stock["facts"] is None


def test_a_second_server_of_the_process_changes_nothing_for_the_first(results):
    result = results["stock afterwards"]
    assert result["code"] == 0, result["output"]
    assert result["facts"].items() >= SERVED.items()
    assert result["after"] is None


@pytest.mark.parametrize("name", ["flag, stock", "flag, no backend", "in a file, no backend"])
def test_the_flag_without_the_backend_is_refused(results, name):
    found = "torch_native" if name == "flag, stock" else "none"
    line = f"--attention-backend: expected hata, because of --hata-config, found {found}"
    _refused(results[name], line)


def test_every_rule_has_a_case():
    """A rule without a test is a claim."""
    tested = {flag.split()[0][2:].replace("-", "_") for flag in FLAGS}
    assert set(ALLOWED) - tested == set()
    assert len(MODELS) >= len(MODEL_OFF)
