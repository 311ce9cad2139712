"""Triton launches that encode; the encoders of `hata_kernels.encoders` check what these are given.

Keys and queries ``[T, H, D]`` may be views whose last dimension is contiguous, as slices of a fused
QKV projection. Weights are in their dtype: products of bf16 and fp16 take the tensor cores, with
float32 accumulation. Sums may round differently for another number of tokens, so a bit whose
projection is within rounding of zero can differ between calls.
"""
