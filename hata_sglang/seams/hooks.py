"""Every place of SGLang that hata changes, in one table.

SGLang logs a hook that fails to apply and goes on without it, so `require_applied` compares the
table with what SGLang says it patched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from hata_sglang.errors import Problem, Refusal
from hata_sglang.metrics import COUNTERS
from hata_sglang.seams import versions
from hata_sglang.seams.session import Session


class Hook(NamedTuple):
    """One patched place: SGLang's dotted name, how, and by what."""

    target: str
    kind: HookType
    function: Callable[..., Any]


_CONFIGURATOR = "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator"


def _build_pool(original, self, *, mha_pool_class, **kwargs):
    """Swap the plain KV pool for the one with codes; leave every other pool alone."""
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    from hata_sglang.seams.pool import make_pool_class

    if mha_pool_class is MHATokenToKVPool and not self.is_draft_worker:
        mha_pool_class = make_pool_class(Session.open(self.model_config))
    return original(self, mha_pool_class=mha_pool_class, **kwargs)


def _cell_size(result: int, self, kvc, num_layers: int) -> int | None:
    """Add the codes to the bytes that SGLang counts per token."""
    if kvc.is_draft_worker:
        return None
    return result + Session.open(kvc.model_config).code_bytes_per_token


def _available_bytes(result: int, self, *args) -> int | None:
    """Take what CUDA graphs will need for scores and slots off the memory left for the pool."""
    from hata_sglang.seams.workspace import graph_workspace_bytes

    return result - graph_workspace_bytes(self)


def _no_fused_writer(original, *args, **kwargs) -> bool:
    """Keep models from writing keys past `set_kv_buffer`: those would have no codes."""
    return False


def _internal_state(result, *args, **kwargs):
    """Show this scheduler's counters under ``internal_states[..].hata`` of ``/server_info``."""
    result.internal_state["hata"] = COUNTERS.snapshot()
    return result


HOOKS: tuple[Hook, ...] = (
    Hook(f"{_CONFIGURATOR}._build_mha_kv_pool", HookType.AROUND, _build_pool),
    Hook(f"{_CONFIGURATOR}._profile_available_bytes", HookType.AFTER, _available_bytes),
    Hook(
        "sglang.srt.model_executor.pool_configurator.DefaultPoolConfigurator._compute_cell_size",
        HookType.AFTER,
        _cell_size,
    ),
    Hook("sglang.srt.models.utils.enable_fused_set_kv_buffer", HookType.AROUND, _no_fused_writer),
    Hook(
        "sglang.srt.managers.scheduler.Scheduler.get_internal_state",
        HookType.AFTER,
        _internal_state,
    ),
)


def register_all() -> None:
    """Register the table; SGLang applies it at the end of loading its plugins."""
    for hook in HOOKS:
        HookRegistry.register(hook.target, hook.function, hook.kind)


def require_applied() -> None:
    """Stop if SGLang did not patch every place of the table.

    Raises
    ------
    Refusal
        Naming each place that this SGLang does not have.
    """
    missing = [h.target for h in HOOKS if h.target not in HookRegistry._patched]
    if missing:
        raise Refusal(
            Problem(f"sglang {versions.SGLANG}", f"{target} to be patched", "not patched")
            for target in missing
        )
