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

WORKER = Path(__file__).with_name("launch_cases.py")

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128,
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "torch_dtype": "float32",
}

GOOD = "method: random\nbudget: 64\nsink: 4\nrecent: 16\n"

#: Flags that make SGLang ask for what hata refuses, and the line that must name it.
FLAGS = {
    "speculative": (["--speculative-algorithm", "NGRAM"], "--speculative-algorithm: expected not set, found NGRAM"),
    "dllm": (["--dllm-algorithm", "LowConfidence"], "--dllm-algorithm: expected not set"),
    "mixed chunk": (["--enable-mixed-chunk"], "--enable-mixed-chunk: expected not set, found True"),
    "two batch overlap": (["--enable-two-batch-overlap"], "--enable-two-batch-overlap: expected not set"),
    "pdmux": (["--enable-pdmux"], "--enable-pdmux: expected not set"),
    "torch compile": (["--enable-torch-compile"], "--enable-torch-compile: expected not set"),
    "megakernel": (["--enable-nvidia-megakernel"], "--enable-nvidia-megakernel: expected not set"),
    "monokernel": (["--enable-amd-monokernel"], "--enable-amd-monokernel: expected not set"),
    "tensor parallel": (["--tp-size", "2"], "--tp-size: expected 1, found 2"),
    "pipeline parallel": (["--pp-size", "2"], "--pp-size: expected 1, found 2"),
    "data parallel": (["--dp-size", "2"], "--dp-size: expected 1, found 2"),
    "attention dp": (["--attn-dp-size", "2"], "--attn-dp-size: expected 1, found 2"),
    "dp attention": (["--enable-dp-attention"], "--enable-dp-attention: expected not set"),
    "decode context parallel": (["--dcp-size", "2"], "--dcp-size: expected 1, found 2"),
    "attention context parallel": (["--attn-cp-size", "2"], "--attn-cp-size: expected 1, found 2"),
    "prefill context parallel": (["--enable-prefill-cp"], "--enable-prefill-cp: expected not set"),
    "dwdp": (["--dwdp-size", "2"], "--dwdp-size: expected 1, found 2"),
    "elastic ep": (["--elastic-ep-backend", "mooncake"], "--elastic-ep-backend: expected not set"),
    "ray": (["--use-ray"], "--use-ray: expected not set"),
    "fp8 cache": (["--kv-cache-dtype", "fp8_e4m3"], "--kv-cache-dtype: expected auto, found fp8_e4m3"),
    "no cache": (["--prefill-only-disable-kv-cache"], "--prefill-only-disable-kv-cache: expected not set"),
    "page major": (["--enable-page-major-kv-layout"], "--enable-page-major-kv-layout: expected not set"),
    "unified memory": (["--enable-unified-memory"], "--enable-unified-memory: expected not set"),
    "sharded cache": (["--enable-kv-cache-sharding"], "--enable-kv-cache-sharding: expected not set"),
    "hicache": (["--enable-hierarchical-cache"], "--enable-hierarchical-cache: expected not set"),
    "lmcache": (["--enable-lmcache"], "--enable-lmcache: expected not set"),
    "flexkv": (["--enable-flexkv"], "--enable-flexkv: expected not set"),
    "external linker": (["--enable-unified-cache-external-linker"], "--enable-unified-cache-external-linker: expected not set"),
    "memory saver": (["--enable-memory-saver"], "--enable-memory-saver: expected not set"),
    "disaggregation": (["--disaggregation-mode", "decode"], "--disaggregation-mode: expected null, found decode"),
    "encoder only": (["--encoder-only"], "--encoder-only: expected not set"),
    "language only": (["--language-only"], "--language-only: expected not set"),
    "hisparse": (["--enable-hisparse"], "--enable-hisparse: expected not set"),
    "deterministic": (["--enable-deterministic-inference"], "--enable-deterministic-inference: expected not set"),
    "multi-item scoring": (["--enable-mis"], "--enable-mis: expected not set"),
    "embedding": (["--is-embedding"], "--is-embedding: expected not set"),
    "lora": (["--enable-lora"], "--enable-lora: expected not set"),
    "lora paths": (["--lora-paths", "a=/nowhere"], "--lora-paths: expected not set"),
    "hata prefill": (["--prefill-attention-backend", "hata"], "--prefill-attention-backend: expected a stock backend"),
    "other inner prefill": (["--prefill-attention-backend", "flex_attention"], "inner backend for prefill: expected one of flashinfer"),
}

YAMLS = {
    "unknown key": (GOOD + "bugdet: 3\n", "budget"),
    "inner backend of a GPU": (GOOD + "inner_backend: flashinfer\n",
                               "inner backend for decode on cpu: expected torch_native, found flashinfer"),
    "missing weights": ("method: hata\nweights: no-such-weights\nbudget: 64\nsink: 4\nrecent: 16\n", "no-such-weights"),
    "weights of another model": ("method: hata\nweights: smollm2-135m-instruct-hata-128b\nbudget: 128\n",
                                 "num_hidden_layers"),
    "bits of other weights": ("method: hata\nbits: 64\nweights: smollm2-135m-instruct-hata-128b\nbudget: 128\n",
                              "64"),
    "layer out of range": (GOOD + "layers: {'3-9': {budget: 128}}\n", "3-9"),
    "all dense": (GOOD + "dense_layers: ['0-3']\n", "dense"),
}

GPT_OSS = {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "sliding_window": 128,
           "layer_types": ["sliding_attention", "full_attention"] * 2}

MODELS = {
    "mla": ({"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2",
             "kv_lora_rank": 16, "q_lora_rank": None, "qk_nope_head_dim": 16,
             "qk_rope_head_dim": 8, "v_head_dim": 16, "first_k_dense_replace": 4},
            "model: expected multi-head or grouped-query attention, found MLA attention"),
    "encoder-decoder": ({"architectures": ["MllamaForConditionalGeneration"]},
                        "model: expected a decoder-only model"),
    "multimodal": ({"architectures": ["LlavaLlamaForCausalLM"]}, "model: expected a text model"),
    "sinks": (GPT_OSS, "model: expected attention without learned sinks"),
    "hybrid sliding windows": (GPT_OSS, "model: expected full attention"),
}


def _cases(tmp):
    """Every launch of this file, as `launch_cases.py` reads them."""
    cases = []

    def add(name, yaml=GOOD, extra=(), env=None, model=None, backend="hata"):
        folder = tmp / f"model{len(cases)}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({**LLAMA, **(model or {})}))
        config = tmp / f"{len(cases)}.yaml"
        config.write_text(yaml)
        argv = ["--model-path", str(folder), "--device", "cpu", "--skip-tokenizer-init",
                "--load-format", "dummy", "--attention-backend", backend, *extra]
        env = {"HATA_CONFIG": str(config), **(env or {})}
        cases.append({"name": name, "argv": argv, "env": env})

    add("good")
    add("stock", backend="torch_native")
    add("no config", env={"HATA_CONFIG": ""})
    add("two reasons", extra=["--tp-size", "2", "--enable-lora"], yaml="methd: hata\n")
    for name, (extra, _) in FLAGS.items():
        add(name, extra=extra)
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
        [sys.executable, str(WORKER)], input=json.dumps(_cases(tmp_path_factory.mktemp("cases"))),
        capture_output=True, text=True, env={**env, "HF_HUB_OFFLINE": "1"}, timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout[done.stdout.index("{"):])


def _refused(result, line):
    if "unrecognized arguments" in result["output"]:
        pytest.skip("this SGLang has no such flag")
    assert "hata cannot run:" in result["output"], result["output"][-3000:]
    refusal = result["output"][result["output"].index("hata cannot run:"):]
    assert line in refusal, refusal
    assert "Traceback" not in refusal
    assert result["code"] == 2
    assert "backend" not in result, "the launch went on"


@pytest.mark.parametrize("name", FLAGS)
def test_flag_is_refused(results, name):
    _refused(results[name], FLAGS[name][1])


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


def test_all_reasons_in_one_error(results):
    output = results["two reasons"]["output"]
    for line in ("--tp-size: expected 1", "--enable-lora: expected not set", "methd"):
        assert line in output[output.index("hata cannot run:"):]


def test_accepted_under_the_inner_name(results):
    good = results["good"]
    assert (good["code"], good["backend"], good["active"]) == (0, "torch_native", "1"), good["output"]


def test_stock_backend_passes_untouched(results):
    stock = results["stock"]
    assert (stock["code"], stock["backend"], stock["active"]) == (0, "torch_native", None)


def test_every_rule_has_a_case():
    """A rule without a test is a claim."""
    words = {word for extra, _ in FLAGS.values() for word in extra if word.startswith("--")}
    assert set(ALLOWED) - {word[2:].replace("-", "_") for word in words} == set()
    assert len(MODELS) >= len(MODEL_OFF)
