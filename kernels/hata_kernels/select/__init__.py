"""Select tokens of every request and KV head: the best scored, or the first and the last."""

from .streaming import select_streaming
from .topk import select

__all__ = ["select", "select_streaming"]
