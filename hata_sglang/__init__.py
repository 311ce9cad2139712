"""HATA's hash-aware top-k attention for SGLang, without forking SGLang.

Importing this package does nothing else than define the version: SGLang loads
its plugins at start-up, so every import here would be paid by servers that
never ask for ``hata``.
"""

__version__ = "0.1.0"
