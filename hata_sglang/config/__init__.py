"""What the user asked for: the YAML, its rules, and the plan of every layer."""

from hata_sglang.config.budget import Budget
from hata_sglang.config.plan import LayerPlan, Method, PlanRow
from hata_sglang.config.schema import DEFAULT_BITS, HataConfig, InnerBackend, LayerOverride

__all__ = [
    "DEFAULT_BITS",
    "Budget",
    "HataConfig",
    "InnerBackend",
    "LayerOverride",
    "LayerPlan",
    "Method",
    "PlanRow",
]
