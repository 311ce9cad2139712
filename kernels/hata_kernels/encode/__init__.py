"""Triton launches that encode; the encoders of `hata_kernels.encoders` check what these are given.

Keys and queries ``[T, H, D]`` may be views whose last dimension is contiguous, as slices of a fused
QKV projection. Weights in their dtype use the tensor cores (bf16, fp16) with float32 accumulation;
in another dtype both are converted to float32 first. Sums may round differently for another number
of tokens, so a bit whose projection is within rounding of zero can differ between calls.
"""
