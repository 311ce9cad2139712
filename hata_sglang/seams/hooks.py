"""Every place of SGLang that hata changes, in one table.

SGLang logs a hook that fails to apply and goes on without it. So the launcher looks whether the
places are there (`missing_places`), and the scheduler whether they were patched (`require_applied`)
and whether the backend was attached (`_require_attached`). In a server that did not ask for hata
every hook passes through.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from typing import Any, NamedTuple

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from hata_sglang.errors import HataError, Problem, Refusal, refuse_any
from hata_sglang.metrics import METRICS
from hata_sglang.seams import versions
from hata_sglang.seams.session import Session
from hata_sglang.seams.validate import INNER_BACKENDS


class Hook(NamedTuple):
    """One patched place: SGLang's dotted name, how, and by what."""

    target: str
    kind: HookType
    function: Callable[..., Any]


_CONFIGURATOR = "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator"
_SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"
_UPDATER = "sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager"


def _add_codes(result: Any, self, **kwargs) -> None:
    """Give the KV pool that SGLang built its code book."""
    from hata_sglang.seams.pool import attach_codes

    session = Session.of_rank(self)
    if session is not None and not self.is_draft_worker:
        attach_codes(result, session)


def _cell_size(result: int, self, kvc, num_layers: int) -> int | None:
    """Add the codes to the bytes that SGLang counts per token."""
    session = Session.of_rank(kvc)
    if session is None or kvc.is_draft_worker:
        return None
    return result + session.code_bytes_per_token


def _available_bytes(result: int, self, *args) -> int | None:
    """Take what decoding needs beside the pool off the memory left for the pool."""
    from hata_sglang.seams.workspace import workspace_bytes

    session = Session.of_rank(self)
    return None if session is None else result - workspace_bytes(self, session)


def _no_fused_writer(original, *args, **kwargs) -> bool:
    """Keep models from writing keys past `set_kv_buffer`: those would have no codes."""
    return False if METRICS.serving else original(*args, **kwargs)


def _internal_state(result, *args, **kwargs):
    """Show this scheduler's metrics under ``internal_states[..].hata`` of ``/server_info``."""
    if METRICS.serving:
        result.internal_state["hata"] = METRICS.snapshot()
    return result


def _require_attached(result, self, *args, **kwargs) -> None:
    """Stop a scheduler whose server asked for hata and whose attention backend is a stock one."""
    if Session.of(self.model_config) is not None and not METRICS.serving:
        names = ", ".join(INNER_BACKENDS)
        setting = f"sglang {versions.SGLANG}"
        raise Refusal.of(setting, f"a decode backend among {names}", "another")


def _keep_traffic(result, self, *args, **kwargs) -> None:
    """Keep samples of requests, where the YAML asks for them."""
    if METRICS.serving:
        from hata_sglang.seams.traffic import keep_traffic

        keep_traffic(self.tp_worker.model_runner)


def _swap_weights(original, self, recv_req):
    """Take ``hata_weights=SET`` as an action of ``/weights_checker``; others are SGLang's."""
    from hata_sglang.seams.swap import ACTION, swap

    if not (METRICS.serving and recv_req.action.startswith(ACTION)):
        return original(self, recv_req)
    from sglang.srt.managers.io_struct import CheckWeightsReqOutput

    try:
        done = swap(self.tp_worker.model_runner, recv_req.action.removeprefix(ACTION))
    except HataError as error:
        return CheckWeightsReqOutput(success=False, message=str(error))
    return CheckWeightsReqOutput(success=True, message=done)


HOOKS: tuple[Hook, ...] = (
    Hook(f"{_CONFIGURATOR}._build_token_to_kv_pool", HookType.AFTER, _add_codes),
    Hook(f"{_CONFIGURATOR}._profile_available_bytes", HookType.AFTER, _available_bytes),
    Hook(
        "sglang.srt.model_executor.pool_configurator.DefaultPoolConfigurator._compute_cell_size",
        HookType.AFTER,
        _cell_size,
    ),
    Hook("sglang.srt.models.utils.enable_fused_set_kv_buffer", HookType.AROUND, _no_fused_writer),
    Hook(f"{_SCHEDULER}.get_internal_state", HookType.AFTER, _internal_state),
    Hook(f"{_UPDATER}.check_weights", HookType.AROUND, _swap_weights),
    Hook(f"{_SCHEDULER}.__init__", HookType.AFTER, _require_attached),
    Hook(f"{_SCHEDULER}.__init__", HookType.AFTER, _keep_traffic),
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
        Naming each of them.
    """
    # SGLang wraps by `functools.wraps`, all hooks of a place or none.
    places = [hook.target for hook in HOOKS]
    _refuse([p for p in places if not hasattr(_find(p), "__wrapped__")], "to be patched")


def require_places() -> None:
    """Stop if SGLang lacks a place of the table; for the launcher, before it spawns anything.

    Raises
    ------
    Refusal
        Naming each of them.
    """
    _refuse([hook.target for hook in HOOKS if _find(hook.target) is None], "to patch")


def _find(place: str) -> Any:
    try:
        return pkgutil.resolve_name(place)
    except (ImportError, AttributeError):
        return None


def _refuse(places: list[str], purpose: str) -> None:
    setting = f"sglang {versions.SGLANG}"
    refuse_any(Problem(setting, f"{place} {purpose}", "not so") for place in places)
