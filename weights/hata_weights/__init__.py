"""Hash weights that ship with hata-sglang: one folder each, ``hash.safetensors`` and ``card.json``."""
