"""What hata refuses, in one place: every reason in one error, before a server starts."""

from __future__ import annotations

import os
from typing import Any

import torch

from hata_sglang.config import HataConfig
from hata_sglang.errors import Problem, Refusal
from hata_sglang.seams import versions
from hata_sglang.seams.session import Session, config_path

#: Inner backends whose metadata and pool layout hata was built against.
INNER_BACKENDS = ("flashinfer", "fa3", "triton", "torch_native")

#: Server arguments and their values under which hata is built and tested; the first one is named
#: in the error. A field that a release does not have is passed over.
ALLOWED: dict[str, tuple[Any, ...]] = {
    # another token order, or verification as an extend, which would be dense
    "speculative_algorithm": (None,),
    "dllm_algorithm": (None,),
    "enable_mixed_chunk": (False,),
    # backends built per micro batch or stream
    "enable_two_batch_overlap": (False,),
    "enable_pdmux": (False,),
    "enable_torch_compile": (False,),
    "enable_nvidia_megakernel": (False,),
    "enable_amd_monokernel": (False,),
    # more than one rank
    "tp_size": (1,),
    "pp_size": (1,),
    "dp_size": (1,),
    "attn_dp_size": (1,),
    "enable_dp_attention": (False,),
    "dcp_size": (1,),
    "attn_cp_size": (1,),
    "dwdp_size": (1, None),
    "enable_prefill_cp": (False,),
    "elastic_ep_backend": (None,),
    "use_ray": (False,),
    # other ways for keys to be laid out or to come back, without their codes
    "kv_cache_dtype": ("auto", "bfloat16", "bf16", "float16", "float32"),
    "prefill_only_disable_kv_cache": (False,),
    "enable_page_major_kv_layout": (False,),
    "enable_unified_memory": (False,),
    "enable_kv_cache_sharding": (False,),
    "enable_hierarchical_cache": (False,),
    "enable_lmcache": (False,),
    "enable_flexkv": (False,),
    "enable_unified_cache_external_linker": (False,),
    "enable_memory_saver": (False,),
    "disaggregation_mode": ("null",),
    "encoder_only": (False,),
    "language_only": (False,),
    # other attention than hata's
    "enable_hisparse": (False,),
    "enable_deterministic_inference": (False,),
    "enable_mis": (False,),
    "is_embedding": (False,),
    # keys that the hash weights were not trained on
    "enable_lora": (False, None),
    "lora_paths": (None, [], {}),
}

ENVIRONMENT_OFF = ("SGLANG_USE_HND_KVCACHE", "SGLANG_ENABLE_POST_CAPTURE_KV_SIZING")

#: Properties of SGLang's ModelConfig that sparse decoding does not implement.
MODEL_OFF = {
    "is_encoder_decoder": "a decoder-only model",
    "is_hybrid_swa": "full attention (or --disable-hybrid-swa-memory, sliding layers dense)",
    "has_attention_sinks": "attention without learned sinks",
    "is_multimodal": "a text model",
}


def check_asked(server_args: Any) -> HataConfig:
    """Check what was asked, before SGLang acts on it (its own error would name one flag alone).

    Parameters
    ----------
    server_args : sglang.srt.server_args.ServerArgs
        Not yet resolved.

    Returns
    -------
    HataConfig
        The YAML, not yet resolved for the model.

    Raises
    ------
    Refusal
        Listing every flag, environment variable and YAML key that cannot be served.
    """
    problems = _arguments(server_args) + _environment()
    if server_args.prefill_attention_backend == "hata":
        problems.append(
            Problem("--prefill-attention-backend", "a stock backend (hata decodes)", "hata")
        )
    config = None
    try:
        config = HataConfig.load(config_path())
    except Refusal as refusal:
        problems += refusal.problems
    model_config = versions.early_model_config(server_args)
    if model_config is not None:
        problems += _model(model_config)
        if config is not None and not problems:
            Session.open(model_config)  # refuses weights and layers that do not fit
    if problems:
        raise Refusal(problems)
    assert config is not None
    return config


def check_resolved(server_args: Any) -> Session:
    """Check what SGLang made of the arguments, the model and the weights, before any spawn.

    Parameters
    ----------
    server_args : sglang.srt.server_args.ServerArgs
        Resolved.

    Returns
    -------
    Session
        The config, resolved for the model, with its weights.

    Raises
    ------
    Refusal
        Listing every setting that hata cannot serve.
    """
    args = versions.resolved(server_args)
    problems = _arguments(args) + _devices(args)
    session = None
    try:
        model_config = versions.model_config(server_args)
        problems += _model(model_config)
        session = Session.open(model_config)
        problems += _heads_on_device(session, args.device)
    except Refusal as refusal:
        problems += refusal.problems
    if problems:
        raise Refusal(problems)
    assert session is not None
    return session


def _arguments(args: Any) -> list[Problem]:
    problems = []
    for name, allowed in ALLOWED.items():
        value = getattr(args, name, allowed[0])
        if value not in allowed:
            flag = "--" + name.replace("_", "-")
            wanted = "not set" if allowed[0] in (None, False) else f"{allowed[0]}"
            problems.append(Problem(flag, wanted, str(value)))
    low, high = versions.SUPPORTED
    if not low <= versions.SGLANG <= high:
        problems.append(Problem("sglang", f"{low} to {high}", str(versions.SGLANG)))
    return problems


def _devices(args: Any) -> list[Problem]:
    problems = []
    if args.device not in ("cuda", "cpu") or (args.device == "cuda" and torch.version.hip):
        problems.append(Problem("--device", "cuda (NVIDIA) or cpu", args.device))
    for phase in ("decode", "prefill"):
        name = getattr(args, f"{phase}_attention_backend", None) or args.attention_backend
        if name not in INNER_BACKENDS:
            problems.append(
                Problem(
                    f"inner backend for {phase}", "one of " + ", ".join(INNER_BACKENDS), str(name)
                )
            )
        elif (args.device == "cpu") != (name == "torch_native"):
            problems.append(
                Problem(
                    f"inner backend for {phase} on {args.device}",
                    "torch_native" if args.device == "cpu" else "flashinfer, fa3 or triton",
                    name,
                )
            )
    return problems


def _environment() -> list[Problem]:
    return [
        Problem(f"environment variable {name}", "not set", os.environ[name])
        for name in ENVIRONMENT_OFF
        if os.environ.get(name, "").lower() in ("1", "true", "yes", "y", "on")
    ]


def _model(model_config: Any) -> list[Problem]:
    from sglang.srt.configs.model_config import AttentionArch

    problems = [
        Problem("model", expected, f"{name} ({model_config.hf_config.architectures})")
        for name, expected in MODEL_OFF.items()
        if getattr(model_config, name, False)
    ]
    if model_config.attention_arch != AttentionArch.MHA:
        problems.append(
            Problem(
                "model",
                "multi-head or grouped-query attention",
                f"{model_config.attention_arch.name} attention",
            )
        )
    if not model_config.is_generation:
        problems.append(Problem("model", "a model that generates", "an embedding or reward model"))
    return problems


def _heads_on_device(session: Session, device: str) -> list[Problem]:
    head_dim = session.shape.head_dim
    if device == "cpu" or head_dim in (64, 128, 256):
        return []
    return [Problem("model's head_dim", "64, 128 or 256 on a GPU", str(head_dim))]


def check_runner(runner: Any) -> Session:
    """Check what is known only in the scheduler process, with model and pool built.

    Raises
    ------
    Refusal
        If a sparse layer's attention is of another kind, or the pool keeps no codes.
    """
    from hata_sglang.seams.layers import check_layers

    session = getattr(type(runner.token_to_kv_pool), "hata_session", None)
    if session is None:
        raise Refusal(
            [
                Problem(
                    "KV pool", "MHATokenToKVPool with codes", type(runner.token_to_kv_pool).__name__
                )
            ]
        )
    check_layers(runner.model, session)
    if runner.kv_cache_dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise Refusal(
            [Problem("KV cache dtype", "bfloat16 or float16", str(runner.kv_cache_dtype))]
        )
    return session
