"""Select tokens of every request and KV head: the best scored, or the first and the last."""

from .topk import select, select_streaming

__all__ = ["select", "select_streaming"]
