"""What differs between the supported SGLang releases, each with its range.

Tested at both ends: 0.5.16 and 0.5.23.
"""

from __future__ import annotations

import json
import os
from typing import Any

import sglang
from packaging.version import Version

SGLANG = Version(sglang.__version__)
SUPPORTED = (Version("0.5.16"), Version("0.5.23"))

#: Server arguments that releases after 0.5.16 brought. All others that hata looks at every
#: supported release must have.
LATER = frozenset(
    {
        "enable_nvidia_megakernel",
        "enable_amd_monokernel",
        "attn_dp_size",
        "dwdp_size",
        "enable_kv_cache_sharding",
        "enable_unified_cache_external_linker",
    }
)

#: Arguments that decide a model's numbers, and what they are unless given.
MODEL_ARGUMENTS = {
    "dtype": "auto",
    "quantization": None,
    "load_format": "auto",
    "model_loader_extra_config": "{}",
    "trust_remote_code": False,
}


def has_argument(name: str) -> bool:
    """Whether this SGLang must have a server argument that hata looks at."""
    return name not in LATER or SUPPORTED[1] <= SGLANG


def resolution_target() -> str:
    """Method of ServerArgs that turns what was asked into what will run.

    0.5.16: the dataclass resolves itself in ``__post_init__``. Later: ``resolve_once``; a hook
    on a msgspec struct's ``__post_init__`` is accepted and never called.
    """
    name = "resolve_once" if _resolves_once() else "__post_init__"
    return f"sglang.srt.server_args.ServerArgs.{name}"


def _resolves_once() -> bool:
    from sglang.srt.server_args import ServerArgs

    return hasattr(ServerArgs, "resolve_once")


def already_resolved(server_args: Any) -> bool:
    """Say whether SGLang will do nothing more to these arguments (later than 0.5.16 only)."""
    return bool(getattr(server_args, "_resolution_finished", False))


def resolved(server_args: Any) -> Any:
    """View of the arguments whose attributes are what will run."""
    from sglang.srt.arg_groups.overrides import resolved_view

    return resolved_view(server_args)


def model_config(server_args: Any) -> Any:
    """SGLang's ModelConfig of these arguments."""
    if hasattr(server_args, "get_model_config"):  # 0.5.16
        return server_args.get_model_config()
    from sglang.srt.arg_groups.model_override_base import model_config_of

    return model_config_of(server_args)


def early_model_config(server_args: Any) -> Any | None:
    """ModelConfig of arguments that SGLang has not resolved yet.

    None where it needs what resolution brings (a model to be fetched first, a dummy): the same
    checks run again afterwards.
    """
    from sglang.srt.configs.model_config import ModelConfig

    if not os.path.isdir(server_args.model_path):
        return None
    try:
        return ModelConfig.from_server_args(server_args)
    # A bad checkpoint: SGLang reports it, with its own words, when it gets there. Another error is
    # not of the model but of this function, in a release that it was not written for.
    except (OSError, ValueError, RuntimeError, AssertionError):
        return None


def decode_backend_name(runner: Any) -> str:
    """Resolved name of the decode attention backend while backends are being built."""
    name = getattr(runner, "decode_attention_backend_str", None)
    if name is None:  # 0.5.16 sets it later
        name = runner.server_args.get_attention_backends()[1]
    return name


def decode_backend(runner: Any) -> Any:
    """The attention backend of decode steps, once it is built."""
    backend = runner.attn_backend
    # Where prefill has another one, SGLang puts the two into a HybridAttnBackend.
    return getattr(backend, "decode_backend", backend)


def kv_heads_here(num_kv_heads: int) -> range:
    """KV heads of this scheduler process, as SGLang's ``QKVParallelLinear`` deals them out.

    Never more ranks than heads: those would share a head and split its query heads.
    """
    from sglang.srt.runtime_context import get_parallel

    parallel = get_parallel()
    each = num_kv_heads // parallel.attn_tp_size
    return range(parallel.attn_tp_rank * each, (parallel.attn_tp_rank + 1) * each)


def layers_here(owner: Any) -> range:
    """Layers of this scheduler process, of a ModelRunner or KVCacheConfigurator."""
    return range(owner.layer_info.start_layer, owner.layer_info.end_layer)


def part_here(owner: Any, num_kv_heads: int) -> tuple[range, range]:
    """KV heads and layers of this scheduler process; arguments as above."""
    return kv_heads_here(num_kv_heads), layers_here(owner)


def write_loc(forward_batch: Any) -> Any:
    """Where this batch's new keys go, as `set_kv_buffer` takes it."""
    from sglang.srt.mem_cache.memory_pool import KVWriteLoc

    return KVWriteLoc(forward_batch.out_cache_loc, None)


def most_requests(asked: int | None) -> int:
    """Most requests at a time: as asked, else SGLang's own bound (``resolve_max_num_reqs``)."""
    return asked or 4096


def prefill_graph_backend(server_args: Any) -> str:
    """How SGLang captures prompts: ``full``, ``disabled`` or another of its names."""
    return resolved(server_args).cuda_graph_config.prefill.backend


def decode_graph_backend(server_args: Any) -> str:
    """How SGLang captures decode steps: ``full``, ``disabled`` or another of its names."""
    return resolved(server_args).cuda_graph_config.decode.backend


def decode_graph_max_bs(server_args: Any) -> int:
    """Largest batch size that decode CUDA graphs are captured for; 0 where they are off."""
    if decode_graph_backend(server_args) == "disabled":
        return 0
    decode = resolved(server_args).cuda_graph_config.decode
    return max(decode.bs or [decode.max_bs or 0])


def model_arguments(server_args: Any, overrides: dict[str, Any]) -> list[str]:
    """The arguments that decide a model's numbers, for another process to load it alike.

    Parameters
    ----------
    server_args : sglang.srt.server_args.ServerArgs
    overrides : dict
        Of the model's config, without what hata carries there.
    """
    words = []
    for name, default in MODEL_ARGUMENTS.items():
        value = getattr(server_args, name)
        if value not in (default, None):
            text = json.dumps(value) if isinstance(value, dict) else str(value)
            words += ["--" + name.replace("_", "-")] + [text] * (value is not True)
    return words + ["--json-model-override-args", json.dumps(overrides)] * bool(overrides)


def load_runner(server_args: Any) -> Any:
    """Load a model into this process, as SGLang's one-batch benchmark does in ``latency_test``.

    Parameters
    ----------
    server_args : sglang.srt.server_args.ServerArgs

    Returns
    -------
    sglang.srt.model_executor.model_runner.ModelRunner
    """
    from sglang.benchmark import one_batch
    from sglang.srt.entrypoints.engine import _set_envs_and_config
    from sglang.srt.server_args import PortArgs

    # Sequences come as numbers, and a checkpoint may have no tokenizer.
    one_batch.get_tokenizer = lambda *_, **__: None
    if _resolves_once():
        server_args.resolve_once()
    _set_envs_and_config(server_args)
    if _resolves_once():
        ranks = one_batch.SpawnRanks(world_rank=0, gpu_id=0)
        one_batch.publish(server_args, role="scheduler", ranks=ranks)
        one_batch._init_process_global_configs()
    else:
        one_batch.initialize_moe_config(server_args)
        one_batch.initialize_fp8_gemm_config(server_args)
        one_batch.initialize_fp4_gemm_config(server_args)
    runner, _ = one_batch.load_model(server_args, PortArgs.init_new(server_args), 0, 0)
    return runner.torch_runner
