"""Score cached keys against the current queries: by codes, or by exact attention."""

from .exact import MAX_GROUP, exact_score
from .levels import score_levels
from .naive import score_naive

__all__ = ["MAX_GROUP", "exact_score", "score_levels", "score_naive"]
