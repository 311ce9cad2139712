"""What hata refuses, in one place: every reason in one error, before a server starts."""

from __future__ import annotations

import os
from typing import Any

import torch

from hata_kernels import attend, score
from hata_sglang.config import HataConfig
from hata_sglang.decoding.gpu_buffers import most_tokens
from hata_sglang.errors import Problem, Refusal, refuse_any
from hata_sglang.seams import versions
from hata_sglang.seams.cpu_preview import has_cuda_driver
from hata_sglang.seams.session import Session, carried, carry, model_shape, served_model
from hata_sglang.weights.auto import make_missing

#: Head sizes that FlashInfer, FA3 and hata's kernels all have.
HEAD_DIMS = (64, 128, 256)
#: Inner backends whose metadata and pool layout hata was built against.
INNER_BACKENDS = ("flashinfer", "fa3", "triton", "torch_native")

#: Server arguments and their values under which hata is built and tested; the first one is named
#: in the error. Where a release that should have an argument lacks it, that is refused as well
#: (`versions.LATER`): a rule must not end with a name.
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


def check_asked(server_args: Any, path: str | None) -> HataConfig:
    """Check what was asked, before SGLang acts on it (its own error would name one flag alone).

    Parameters
    ----------
    server_args : sglang.srt.server_args.ServerArgs
        Not yet resolved; carries the configuration afterwards.
    path : str or None
        Of the YAML, which is read here and nowhere else.

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
        config = _load(path)
        carry(server_args, config)
    except Refusal as refusal:
        problems += refusal.problems
    problems += _model_path(server_args.model_path)
    model_config = versions.early_model_config(server_args)
    if model_config is not None:
        problems += _model(model_config)
        if config is not None and not problems:
            _make_weights(config, model_config, server_args)
            Session.of(model_config)  # refuses weights and layers that do not fit
    refuse_any(problems)
    assert config is not None
    return config


def _model_path(path: str) -> list[Problem]:
    """A path that leads nowhere; SGLang would take it for the name of a model on a hub."""
    is_path = path.startswith((os.sep, ".", "~"))
    if not is_path or os.path.exists(os.path.expanduser(path)):
        return []
    return [Problem("--model-path", "a model's folder, or its name on a hub", f"no folder {path}")]


def _load(path: str | None) -> HataConfig:
    if not path:
        setting = "--hata-config (or the environment variable HATA_CONFIG)"
        raise Refusal.of(setting, "the path of a YAML file", "nothing")
    return HataConfig.load(path)


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
        if not problems:
            _make_weights(carried(model_config), model_config, args)
        session = Session.of(model_config)
        assert session is not None, "the arguments carry a configuration"
        if args.device == "cpu":
            problems += cpu_limits(session)
        else:
            problems += device_limits(session) + _graphs(args, session)
    except Refusal as refusal:
        problems += refusal.problems
    refuse_any(problems)
    assert session is not None
    return session


def _make_weights(config: HataConfig, model_config: Any, args: Any) -> None:
    """Calibrate what ``weights: auto`` asks for and nobody has made."""
    shape = model_shape(model_config)
    plans = config.resolve(shape.num_layers, shape.context_len)
    device = "cpu" if args.device == "cpu" or not has_cuda_driver() else "cuda"
    model = served_model(model_config)
    arguments = versions.model_arguments(args, model.overrides)
    make_missing(plans, shape.group, model, device, arguments)


def _arguments(args: Any) -> list[Problem]:
    problems = []
    for name, allowed in ALLOWED.items():
        if not hasattr(args, name):
            if versions.has_argument(name):
                problems.append(Problem(f"sglang {versions.SGLANG}", f"an argument {name}", "none"))
            continue
        value = getattr(args, name)
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


def device_limits(session: Session) -> list[Problem]:
    """What kernels on a GPU do not take of a model or of its layers.

    Parameters
    ----------
    session : Session
    """
    shape, problems = session.shape, []
    if shape.head_dim not in HEAD_DIMS:
        expected = " or ".join(map(str, HEAD_DIMS)) + " on a GPU"
        problems.append(Problem("model's head_dim", expected, str(shape.head_dim)))
    for name, most, layers in (
        ("a sparse layer", attend.MAX_GROUP, session.sparse_plans),
        ("method exact", score.MAX_GROUP, [p for p in session.sparse_plans if p.ranks == "scores"]),
    ):
        if layers and shape.group > most:
            setting = "model's query heads per KV head"
            problems.append(
                Problem(setting, f"at most {most} for {name} on a GPU", str(shape.group))
            )
    most = min((most_tokens(e) for e in session.encoders.values()), default=shape.context_len)
    if shape.context_len > most:
        expected = f"at most {most} tokens with these codes on a GPU"
        problems.append(Problem("--context-length", expected, str(shape.context_len)))
    return problems


def cpu_limits(session: Session) -> list[Problem]:
    """What the compiled step of a CPU does not take.

    Parameters
    ----------
    session : Session
    """
    problems = []
    if session.config.attend != "auto":
        problems.append(Problem("attend", "auto on a CPU", session.config.attend))
    weights = {encoder.plane_weights for encoder in session.encoders.values()}
    for found in sorted(weights):
        if any(weight & (weight - 1) for weight in found):
            expected = "plane weights that are powers of 2, on a CPU"
            problems.append(Problem("method's encoder", expected, str(found)))
    return problems


def _graphs(args: Any, session: Session) -> list[Problem]:
    """Decode steps are captured whole, or not at all; then their largest batch has to be known.

    Prompts must not be captured whole where their values are summed: for as many as there are.
    """
    backend = versions.decode_graph_backend(args)
    if backend not in ("full", "disabled"):
        return [Problem("--cuda-graph-backend-decode", "full or disabled", backend)]
    if session.left_out and versions.prefill_graph_backend(args) == "full":
        expected = "another, or left_out: none in the YAML"
        return [Problem("--cuda-graph-backend-prefill", expected, "full")]
    if backend == "disabled" and not args.max_running_requests:
        expected = "a number, because without CUDA graphs scratch is reserved for so many requests"
        return [Problem("--max-running-requests", expected, "nothing")]
    return []


def check_runner(runner: Any, session: Session) -> None:
    """Check what is known only in the scheduler process, with model and pool built.

    Raises
    ------
    Refusal
        If a sparse layer's attention is of another kind, or the pool keeps no codes.
    """
    from hata_sglang.seams.layers import check_layers

    if not hasattr(runner.token_to_kv_pool, "hata_codes"):
        found = type(runner.token_to_kv_pool).__name__
        raise Refusal.of("KV pool", "MHATokenToKVPool with codes", found)
    sparse = [plan.layer for plan in session.sparse_plans]
    check_layers(runner.model, sparse, " (or list it under dense_layers)")
    if runner.kv_cache_dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise Refusal.of("KV cache dtype", "bfloat16 or float16", str(runner.kv_cache_dtype))
