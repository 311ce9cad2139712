"""What one server was asked to do, resolved for its model: the plan and weights per layer."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch

from hata_kernels.encoders import Encoder
from hata_sglang.config import HataConfig, LayerPlan
from hata_sglang.config.layer_ranges import format_layers
from hata_sglang.errors import Refusal
from hata_sglang.seams import versions
from hata_sglang.shape import ModelShape
from hata_sglang.weights.auto import ServedModel
from hata_sglang.weights.encoders import load_encoders

#: Where a server's arguments keep its configuration: a key of SGLang's overrides of the model's
#: config. Processes get the arguments of their own server, and one environment for all servers.
CARRIED = "hata_config"


def carry(server_args: Any, config: HataConfig) -> None:
    """Put a configuration into a server's arguments: this marks a server that asked for hata.

    Parameters
    ----------
    server_args : sglang.srt.server_args.ServerArgs
        Not yet resolved; ``json_model_override_args`` gets a key.
    config : HataConfig
    """
    overrides = json.loads(server_args.json_model_override_args or "{}")
    # As a text, because SGLang's cache of model configs hashes the values.
    overrides[CARRIED] = json.dumps({"from": config.origin, "settings": config.to_mapping()})
    server_args.json_model_override_args = json.dumps(overrides)


def carried(model_config: Any) -> HataConfig | None:
    """The configuration of a model's server; None where hata was not asked for."""
    text = getattr(model_config.hf_config, CARRIED, None)
    if text is None:
        return None
    content = json.loads(text)
    origin = content["from"]
    return HataConfig.parse(content["settings"], base_dir=Path(origin).parent, origin=origin)


def served_model(model_config: Any) -> ServedModel:
    """What ``weights: auto`` asks of SGLang's ``ModelConfig``; hata's own key is no override."""
    given = getattr(model_config, "model_override_args", {})
    overrides = {name: value for name, value in given.items() if name != CARRIED}
    where = (model_config.model_path, overrides, model_config.revision)
    return ServedModel(model_config.hf_config, *where)


def model_shape(model_config: Any) -> ModelShape:
    """Read the shape off SGLang's ``ModelConfig`` (``sglang/srt/configs/model_config.py``)."""
    return ModelShape(
        num_heads=model_config.num_attention_heads,
        num_kv_heads=model_config.get_num_kv_heads(1),
        head_dim=model_config.head_dim,
        num_layers=model_config.num_hidden_layers,
        context_len=model_config.context_len,
    )


@dataclass(frozen=True)
class Session:
    """Config, plan per layer and encoder per coded layer: of a model, or what one rank has of it.

    Attributes
    ----------
    config : HataConfig
    shape : ModelShape
    plans : tuple of LayerPlan
        One per layer.
    encoders : dict of int to hata_kernels.encoders.Encoder
        Of every sparse layer whose method keeps codes; float32, on the CPU.
    left_out : dict of int to torch.Tensor
        Of every layer that mixes in the mean of the values left out: float32 ``[Hq, RATIOS]``
        (`hata_kernels.attend.left_out`).
    """

    config: HataConfig
    shape: ModelShape
    plans: tuple[LayerPlan, ...]
    encoders: dict[int, Encoder]
    left_out: dict[int, torch.Tensor] = field(default_factory=dict)

    @cached_property
    def sparse_plans(self) -> tuple[LayerPlan, ...]:
        """Plans of the layers that hata serves."""
        return tuple(p for p in self.plans if not p.dense)

    @cached_property
    def code_bytes_per_token(self) -> int:
        """Bytes of codes and scales that one token takes over all coded layers."""
        return sum(e.num_kv_heads * e.code_bytes for e in self.encoders.values())

    def facts(self) -> dict[str, Any]:
        """What is served, for people: JSON values; lists where layers differ."""

        def only(values: Iterable[Any]) -> Any:
            found = list(dict.fromkeys(values))
            return found[0] if len(found) == 1 else found

        sparse = self.sparse_plans
        return {
            "method": only(plan.method for plan in sparse),
            "bits": only(plan.bits for plan in sparse),
            "weights": only(plan.weights for plan in sparse),
            "budget": only(str(plan.budget) for plan in sparse),
            "layers": format_layers(plan.layer for plan in sparse),
            "left_out_layers": len(self.left_out),
            "num_layers": self.shape.num_layers,
            "config": self.config.origin,
        }

    @classmethod
    def of(cls, model_config: Any) -> Session | None:
        """The session of a model's server, with its weights; None where hata was not asked for.

        Parameters
        ----------
        model_config : sglang.srt.configs.model_config.ModelConfig

        Raises
        ------
        Refusal
            If the configuration does not fit the model, or the weights cannot be found or do not
            fit. All reasons that can be known are listed.
        """
        # SGLang asks several times while it sizes the pool; the weights are read once.
        if model_config not in _OPENED:
            config = carried(model_config)
            _OPENED[model_config] = None if config is None else cls._open(config, model_config)
        return _OPENED[model_config]

    @classmethod
    def of_rank(cls, owner: Any) -> Session | None:
        """The part of a server's session that this process serves; None as in `of`.

        Parameters
        ----------
        owner : ModelRunner or KVCacheConfigurator
            Of SGLang, in a scheduler process: its parallel groups exist.
        """
        session = cls.of(owner.model_config)
        if session is None:
            return None
        return session.on_rank(*versions.part_here(owner, session.shape.num_kv_heads))

    def on_rank(self, kv_heads: range, layers: range) -> Session:
        """What a rank serves that has some of the KV heads, with their query heads, and layers.

        Parameters
        ----------
        kv_heads, layers : range
            Of this session, without gaps. Layers keep the model's numbers.

        Returns
        -------
        Session
            This one where the rank has all.
        """
        own = tuple(plan for plan in self.plans if plan.layer in layers)
        if len(kv_heads) == self.shape.num_kv_heads and own == self.plans:
            return self
        group = self.shape.group
        shape = replace(self.shape, num_heads=group * len(kv_heads), num_kv_heads=len(kv_heads))
        encoders = {
            layer: encoder.shard(kv_heads)
            for layer, encoder in self.encoders.items()
            if layer in layers
        }
        query_heads = slice(group * kv_heads.start, group * kv_heads.stop)
        left_out = {n: weights[query_heads] for n, weights in self.left_out.items() if n in layers}
        return Session(self.config, shape, own, encoders, left_out)

    def with_weights(self, ref: str, model_config: Any) -> Session:
        """Return this session with another set in place of the one that it has.

        The mean of the values left out stays in, or out, whatever the other set weighs.

        Parameters
        ----------
        ref : str
            Folder or shipped name of the set.
        model_config : sglang.srt.configs.model_config.ModelConfig

        Raises
        ------
        Refusal
            If not all layers with trained codes have one set, or the other one does not fit the
            model, the method, the bits or the layers, or is damaged.
        """
        named = {plan.weights for plan in self.plans if plan.weights is not None}
        if len(named) != 1:
            found = ", ".join(sorted(named)) or "none"
            raise Refusal.of("weights to swap", "one set in all layers of trained codes", found)
        plans = [p if p.weights is None else replace(p, weights=ref) for p in self.plans]
        loaded = load_encoders(plans, self.shape, served_model(model_config))
        return Session(self.config, self.shape, loaded.plans, loaded.encoders, loaded.left_out)

    def keep(self, model_config: Any) -> None:
        """Be the session of a model's server from now on."""
        _OPENED[model_config] = self

    @classmethod
    def _open(cls, config: HataConfig, model_config: Any) -> Session:
        shape = model_shape(model_config)
        plans = config.resolve(shape.num_layers, shape.context_len)
        loaded = load_encoders(plans, shape, served_model(model_config))
        return cls(config, shape, loaded.plans, loaded.encoders, loaded.left_out)


_OPENED: WeakKeyDictionary[Any, Session | None] = WeakKeyDictionary()
