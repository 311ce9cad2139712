"""The KV pool with a code book: whatever happens to a key happens to its code.

SGLang's ``MHATokenToKVPool`` (sglang/srt/mem_cache/memory_pool.py) gets some methods more, so that
whatever allocates, shares, frees or moves a slot treats the code like the key.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.constants import GPU_MEMORY_TYPE_KV_CACHE
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, unwrap_write_loc

from hata_sglang.decoding import CodeBook, LayerCache
from hata_sglang.decoding.warm import warm_encoders
from hata_sglang.seams.retype import Methods, retype
from hata_sglang.seams.session import Session


def attach_codes(pool: Any, session: Session) -> None:
    """Give a pool a code book, changed in place; leave pools of other kinds alone.

    Parameters
    ----------
    pool : sglang.srt.mem_cache.memory_pool.KVCache
        Just built. A ``MHATokenToKVPool`` gets the methods of `CodedPool` and ``hata_codes``.
    session : Session
        Of this rank.
    """
    if type(pool) is not MHATokenToKVPool:
        return
    # The same region as K and V: SGLang releases and resumes the three together.
    with pool.memory_saver_adapter.region(GPU_MEMORY_TYPE_KV_CACHE):
        pool.hata_codes = CodeBook(
            session.encoders,
            [plan.layer for plan in session.sparse_plans],
            slots=pool.size + pool.page_size,
            device=pool.device,
            dtype=pool.dtype,
        )
    pool.mem_usage += pool.hata_codes.nbytes / 2**30  # in GiB, as SGLang has it
    retype(pool, CodedPool)
    if torch.device(pool.device).type != "cpu":
        warm_encoders(pool.hata_codes, pool.dtype)


class CodedPool(Methods):
    """What a pool gets: codes are written, moved and loaded with the keys."""

    hata_codes: CodeBook

    def set_kv_buffer(self, layer, loc_info, cache_k, cache_v, *args, **kwargs):
        """Write keys and values of a layer, and their codes."""
        own = kwargs.get("layer_id_override")
        # Before the stock method: an fp8 pool would divide K in place.
        self.hata_codes.encode(
            layer.layer_id if own is None else own, unwrap_write_loc(loc_info)[0], cache_k
        )
        self.hata_stock.set_kv_buffer(layer, loc_info, cache_k, cache_v, *args, **kwargs)

    def write_step(self, layer, loc_info, cache_k, cache_v, *, codes: bool):
        """Write keys and values of a decode step, and codes unless the decoder will.

        Returns the keys ``[bs, Hkv, D]`` and their slots ``[bs]``.
        """
        write = self.set_kv_buffer if codes else self.hata_stock.set_kv_buffer
        write(layer, loc_info, cache_k, cache_v)
        return cache_k.reshape(-1, self.head_num, self.head_dim), unwrap_write_loc(loc_info)[0]

    def layer_cache(self, layer_id: int) -> LayerCache:
        """What a layer keeps, codes beside keys."""
        book = self.hata_codes
        beside = (book.codes.get(layer_id), book.scales.get(layer_id))
        return LayerCache(*self.get_kv_buffer(layer_id), *beside)

    def move_kv_cache(self, tgt_loc, src_loc):
        """Move keys, values and codes."""
        self.hata_stock.move_kv_cache(tgt_loc, src_loc)
        self.hata_codes.move(tgt_loc, src_loc)

    def load_cpu_copy(self, kv_cache_cpu, indices, *args: Any, **kwargs: Any):
        """Load keys and values from host memory, and encode the keys."""
        self.hata_stock.load_cpu_copy(kv_cache_cpu, indices, *args, **kwargs)
        for layer_id in self.hata_codes.encoders:
            self.hata_codes.reencode(layer_id, indices, self._get_key_buffer(layer_id))

    def get_kv_size_bytes(self):
        """Bytes of K with its codes, and of V."""
        k_bytes, v_bytes = self.hata_stock.get_kv_size_bytes()
        return k_bytes + self.hata_codes.nbytes, v_bytes

    def _clear_buffers(self):
        del self.hata_codes
        self.hata_stock._clear_buffers()
