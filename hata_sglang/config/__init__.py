"""What the user asked for: the YAML, its rules, and the plan of every layer."""

from hata_sglang.config.budget import Budget
from hata_sglang.config.plan import LayerPlan
from hata_sglang.config.schema import HataConfig, InnerBackend, LayerOverride

__all__ = [
    "Budget",
    "HataConfig",
    "InnerBackend",
    "LayerOverride",
    "LayerPlan",
]
