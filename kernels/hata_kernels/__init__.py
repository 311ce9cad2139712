"""Kernels of decoding by hash codes: encoders, encode, rank, attend.

The public functions check their arguments and pick by device between a readable PyTorch reference
and the GPU kernels; the methods' codes are made by `encoders`, whose GPU kernels are in `encode`,
and `cpu` has a layer's decode step in one call, compiled for CPUs. Nothing here knows SGLang, YAML
or models. Data layout, in one place:

- slot: index of a token in the KV pool.
- code: r bits of one key for one KV head, packed into int32 words; bit j is in word ``j // 32``.
- codes of a layer: int32 ``[slots, kv_heads, words]``, contiguous.
- scales of a layer, where a method keeps them: uint8 or int16 (the low 16 bits) ``[slots,
  kv_heads]``, one small integer per key.
- planes: a query is P codes per KV head, each with an integer weight; int32 ``[batch, kv_heads *
  P, words]``. One plane per query head of weight 1 (HATA), or bit p of a quantised query of weight
  ``2**p`` (asymmetric).
- score of a token for a KV head: sum over the planes of weight times agreeing bits, an integer in
  ``[0, M]``, ``M = r * sum(weights)``; with scales an integer below 2047. Sink and recent tokens
  get one more than the highest.
- selection: int32 slots ``[batch, kv_heads, k]``; row (b, h) holds ``min(seq_lens[b], budget_b)``
  slots first, then -1.

Methods: Gong et al., "HATA: Trainable and Hardware-Efficient Hash-Aware Top-k Attention", Findings
of ACL 2025, arXiv 2506.02572, section 3; Desai et al., "HashAttention", arXiv 2412.14468; and
asymmetric codes, `hata_kernels.encoders.AsymmetricEncoder`.
"""
