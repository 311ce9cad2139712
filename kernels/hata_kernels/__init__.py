"""Kernels of HATA decoding: encode, score, select, attend.

Each sub-package holds a readable CPU reference (`naive.py`, also the CPU serving path) beside the
GPU kernels, and one function of the same signature that picks between them by device. Nothing here
knows SGLang, YAML or models. Data layout, in one place:

- slot: index of a token in the KV pool.
- code: the sign bits of one key (or query) for one head, packed into int32 words; bit j of word w
  is projection ``32 * w + j > 0``.
- codes of a layer: int32 ``[slots, kv_heads, words]``, contiguous.
- score of a token for a KV head: sum over the head's query group of the number of agreeing bits,
  an integer in ``[0, group * bits]``; sink and recent tokens get ``group * bits + 1``.
- selection: int32 slots ``[batch, kv_heads, k]``; row (b, h) holds ``min(seq_lens[b], budget_b)``
  slots first, then -1.

Method: Gong et al., "HATA: Trainable and Hardware-Efficient Hash-Aware Top-k Attention", Findings
of ACL 2025, arXiv 2506.02572, section 3.
"""
