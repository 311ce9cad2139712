"""What one server was asked to do, resolved for its model: the plan and weights per layer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch

from hata_sglang.config import HataConfig, LayerPlan
from hata_sglang.errors import Problem, Refusal
from hata_sglang.weights import check_against_model, load_weights

#: Path of the YAML. Set by ``--hata-config`` or by the user; spawned processes inherit it.
CONFIG_ENV = "HATA_CONFIG"
#: Set to the inner backend's name in processes whose server asked for ``hata``.
ACTIVE_ENV = "HATA_SGLANG_ACTIVE"

#: Methods that keep a hash code beside every key.
CODED_METHODS = ("hata", "random")


@dataclass(frozen=True)
class ModelShape:
    """The numbers of a model that hata needs, as one tensor-parallel rank sees them."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context_len: int

    @classmethod
    def of(cls, model_config: Any) -> ModelShape:
        """Read them from SGLang's ``ModelConfig`` (``sglang/srt/configs/model_config.py``)."""
        return cls(
            num_layers=model_config.num_hidden_layers,
            num_heads=model_config.num_attention_heads,
            num_kv_heads=model_config.get_num_kv_heads(1),
            head_dim=model_config.head_dim,
            context_len=model_config.context_len,
        )

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.num_heads // self.num_kv_heads


@dataclass(frozen=True)
class Session:
    """Config, plan per layer and hash weights per coded layer, for one model.

    Attributes
    ----------
    config : HataConfig
    shape : ModelShape
    plans : tuple of LayerPlan
        One per layer of the model, index = layer number.
    weights : dict of int to torch.Tensor
        float32 ``[Hkv, D, bits]`` for every sparse layer whose method keeps codes.
    """

    config: HataConfig
    shape: ModelShape
    plans: tuple[LayerPlan, ...]
    weights: dict[int, torch.Tensor]

    @cached_property
    def sparse_plans(self) -> tuple[LayerPlan, ...]:
        """Plans of the layers that hata serves."""
        return tuple(p for p in self.plans if not p.dense)

    @cached_property
    def code_bytes_per_token(self) -> int:
        """Bytes of codes that one token takes over all coded layers."""
        return sum(w.shape[0] * w.shape[2] // 8 for w in self.weights.values())

    @classmethod
    def open(cls, model_config: Any) -> Session:
        """Load the YAML named by `CONFIG_ENV` and the weights it names, for this model.

        Parameters
        ----------
        model_config : sglang.srt.configs.model_config.ModelConfig

        Raises
        ------
        Refusal
            If the file is not named, not readable or not valid, does not fit the model, or the
            weights cannot be found or do not fit. All reasons that can be known are listed.
        """
        # SGLang asks several times while it sizes the pool; the weights are read once.
        if model_config not in _OPENED:
            config = HataConfig.load(config_path())
            shape = ModelShape.of(model_config)
            plans = config.resolve(shape.num_layers, shape.context_len)
            weights = _layer_weights(plans, shape, model_config.hf_config)
            _OPENED[model_config] = cls(config, shape, plans, weights)
        return _OPENED[model_config]


_OPENED: WeakKeyDictionary[Any, Session] = WeakKeyDictionary()


def config_path() -> str:
    """Path of this server's YAML; refuses where none was named."""
    path = os.environ.get(CONFIG_ENV)
    if not path:
        raise Refusal(
            [
                Problem(
                    f"--hata-config (or the environment variable {CONFIG_ENV})",
                    "the path of a YAML file",
                    "nothing",
                )
            ]
        )
    return path


def _layer_weights(plans, shape: ModelShape, hf_config) -> dict[int, torch.Tensor]:
    """Weights of every sparse coded layer; one Refusal for all that do not fit."""
    problems: list[Problem] = []
    sets: dict[str, Any] = {}
    weights: dict[int, torch.Tensor] = {}
    for plan in plans:
        if plan.dense or plan.method not in CODED_METHODS:
            continue
        if plan.method == "random":
            weights[plan.layer] = random_weights(plan, shape)
            continue
        ref = str(plan.weights)
        if ref not in sets:
            sets[ref] = load_weights(plan.weights)
            problems += check_against_model(sets[ref], hf_config)
        tensor = sets[ref].tensors.get(plan.layer)
        want = (shape.num_kv_heads, shape.head_dim, plan.bits)
        if tensor is None or tuple(tensor.shape) != want:
            found = "no tensor for it" if tensor is None else f"shape {tuple(tensor.shape)}"
            problems.append(Problem(f"weights {ref}, layer {plan.layer}", f"shape {want}", found))
        else:
            weights[plan.layer] = tensor
    if problems:
        raise Refusal(problems)
    return weights


def random_weights(plan: LayerPlan, shape: ModelShape) -> torch.Tensor:
    """Random hyperplanes ``[Hkv, D, bits]`` of ``method: random``, the same in every process."""
    generator = torch.Generator().manual_seed(plan.seed * 100_003 + plan.layer)
    return torch.randn(shape.num_kv_heads, shape.head_dim, plan.bits, generator=generator)
