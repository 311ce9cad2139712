"""Installed but not asked for, SGLang is what it is without hata."""

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points

from hata_sglang.seams.versions import resolution_target

PROBE = """
from hata_sglang.seams import cpu_preview
cpu_preview.enable()
import argparse, json
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.plugins.hook_registry import HookRegistry
from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
from sglang.srt.mem_cache.kv_cache_configurator import KVCacheConfigurator
from sglang.srt.model_executor.pool_configurator import DefaultPoolConfigurator
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.models.utils import enable_fused_set_kv_buffer
from sglang.srt import server_args

def where(function):
    function = getattr(function, "__func__", function)  # staticmethod, classmethod
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else type(function).__name__

classes = (TorchNativeAttnBackend, MHATokenToKVPool, KVCacheConfigurator, DefaultPoolConfigurator,
           Scheduler)
methods = {f"{c.__name__}.{n}": where(m)
           for c in classes for n, m in vars(c).items() if callable(m)}
factories = {name: where(f) for name, f in ATTENTION_BACKENDS.items()}
parser = argparse.ArgumentParser()
server_args.ServerArgs.add_cli_args(parser)
flags = sorted(o for a in parser._actions for o in a.option_strings)
print("PROBE" + json.dumps({
    "methods": methods, "factories": factories, "flags": flags,
    "names": list(server_args.ATTENTION_BACKEND_CHOICES),
    "fused": where(enable_fused_set_kv_buffer), "patched": sorted(HookRegistry._patched),
}))
"""


def _probe(**env):
    base = {k: v for k, v in os.environ.items() if not k.startswith("HATA_")}
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        env={**base, **env},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.split("PROBE")[1])


def test_only_the_name_and_the_flag_are_added():
    # SGLang brings plugins of its own; they stay.
    others = {e.name for e in entry_points(group="sglang.srt.plugins")} - {"hata"}
    with_hata, without = _probe(), _probe(SGLANG_PLUGINS=",".join(others) or "none")
    assert with_hata["methods"] == without["methods"]
    assert with_hata["factories"] == without["factories"]
    assert with_hata["fused"] == without["fused"]
    assert set(with_hata["names"]) - set(without["names"]) == {"hata"}
    assert set(with_hata["flags"]) - set(without["flags"]) == {"--hata-config"}
    added = set(with_hata["patched"]) - set(without["patched"])
    allowed = {"sglang.srt.server_args.ServerArgs.add_cli_args", resolution_target()}
    assert resolution_target() in added
    assert added <= allowed  # another plugin may have wrapped the flags already


def test_a_server_that_asked_patches_every_seam():
    asked, plain = _probe(HATA_SGLANG_ACTIVE="1"), _probe()
    assert len(set(asked["patched"]) - set(plain["patched"])) == 7
    changed = {n for n, f in asked["factories"].items() if f != plain["factories"][n]}
    assert changed == {"flashinfer", "fa3", "triton", "torch_native"}
    assert (
        asked["methods"]["TorchNativeAttnBackend.forward_decode"]
        == (plain["methods"]["TorchNativeAttnBackend.forward_decode"])
    )
