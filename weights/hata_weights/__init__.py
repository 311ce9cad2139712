"""Hash weights that ship with hata-sglang: one folder each, tensors and card."""
