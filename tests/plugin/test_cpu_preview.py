"""A process without a CUDA driver: what prepares it for SGLang, and who stays as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from hata_sglang.seams import cpu_preview

pytestmark = pytest.mark.skipif(cpu_preview.has_cuda_driver(), reason="for machines without a GPU")

CONFIG = {
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
YAML = "method: random\nbudget: 64\nsink: 4\nrecent: 16\n"

#: What a user's script with an Engine does up to the first spawned process.
RESOLVE = """
import json, os, sys
import sglang
from sglang.srt.entrypoints.engine import Engine
from sglang.srt.plugins import load_plugins
from sglang.srt.server_args import ServerArgs

before = dict(os.environ), list(sys.path)
load_plugins()
args = ServerArgs(model_path=sys.argv[1], device="cpu", attention_backend=sys.argv[2])
if hasattr(args, "resolve_once"):
    args.resolve_once()
changed = sorted(name for name in os.environ if os.environ[name] != before[0].get(name))
print("FOUND" + json.dumps({
    "path": [folder for folder in sys.path if folder not in before[1]],
    "changed": changed,
    "compile": os.environ.get("TORCH_COMPILE_DISABLE"),
}))
"""

#: A process that SGLang spawns starts with nothing but the path and environment of its parent.
SPAWN = """
import multiprocessing

def child(queue):
    import sgl_kernel
    queue.put(type(sgl_kernel).__name__)

if __name__ == "__main__":
    from hata_sglang.seams import cpu_preview
    assert cpu_preview.enable() and cpu_preview.enable()
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    process.join(200)
    print("CHILD", process.exitcode, queue.get(timeout=10))
"""


def environment(**more):
    plain = {k: v for k, v in os.environ.items() if not k.startswith("HATA_")}
    for name in cpu_preview.ENVIRONMENT:
        plain.pop(name, None)
    return {**plain, **more}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cpu") / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder.parent / "hata.yaml").write_text(YAML)
    return folder


def resolve(model, backend, **more):
    done = subprocess.run(
        [sys.executable, "-c", RESOLVE, model, backend],
        env=environment(HATA_CONFIG=str(model.parent / "hata.yaml"), **more),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.split("FOUND")[1])


def test_who_asks_for_hata_gets_a_process_that_can_spawn_schedulers(model):
    found = resolve(model, "hata")
    assert found["path"] == [cpu_preview.PLACEHOLDER_FOLDER]
    assert set(cpu_preview.ENVIRONMENT) <= set(found["changed"])


def test_a_stock_engine_is_left_alone(model):
    found = resolve(model, "torch_native")
    assert found["path"] == []
    assert not {*cpu_preview.ENVIRONMENT, "HATA_SGLANG_ACTIVE"} & set(found["changed"])


def test_what_the_user_set_stays(model):
    assert resolve(model, "hata", TORCH_COMPILE_DISABLE="0")["compile"] == "0"


def test_spawned_processes_can_import_sglangs_kernels(tmp_path):
    script = tmp_path / "spawn.py"
    script.write_text(SPAWN)
    done = subprocess.run(
        [sys.executable, script], env=environment(), capture_output=True, text=True, timeout=300
    )
    assert "CHILD 0 module" in done.stdout, done.stderr[-3000:]
