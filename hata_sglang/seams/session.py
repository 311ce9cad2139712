"""What one server was asked to do, resolved for its model: the plan and weights per layer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from hata_kernels.encoders import Encoder
from hata_sglang.config import HataConfig, LayerPlan
from hata_sglang.encoders import load_encoders
from hata_sglang.errors import Problem, Refusal

#: Path of the YAML. Set by ``--hata-config`` or by the user; spawned processes inherit it.
CONFIG_ENV = "HATA_CONFIG"
#: Set to the inner backend's name in processes whose server asked for ``hata``.
ACTIVE_ENV = "HATA_SGLANG_ACTIVE"


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


@dataclass(frozen=True)
class Session:
    """Config, plan per layer and encoder per coded layer, for one model.

    Attributes
    ----------
    config : HataConfig
    shape : ModelShape
    plans : tuple of LayerPlan
        One per layer of the model, index = layer number.
    weights : dict of int to hata_kernels.encoders.Encoder
        Of every sparse layer whose method keeps codes; float32, on the CPU.
    """

    config: HataConfig
    shape: ModelShape
    plans: tuple[LayerPlan, ...]
    weights: dict[int, Encoder]

    @cached_property
    def sparse_plans(self) -> tuple[LayerPlan, ...]:
        """Plans of the layers that hata serves."""
        return tuple(p for p in self.plans if not p.dense)

    @cached_property
    def code_bytes_per_token(self) -> int:
        """Bytes of codes and scales that one token takes over all coded layers."""
        return sum(e.num_kv_heads * e.code_bytes for e in self.weights.values())

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
            loaded = load_encoders(plans, shape, model_config.hf_config)
            _OPENED[model_config] = cls(config, shape, loaded.plans, loaded.encoders)
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
