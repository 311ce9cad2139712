"""The code pool: hash codes, and scales, beside the keys, indexed by the same slot.

A subclass of SGLang's ``MHATokenToKVPool``, so that whatever allocates, shares, frees or moves a
slot treats the code like the key. Codes are a function of keys: where keys come back by another
way than `set_kv_buffer`, they are encoded again.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.constants import GPU_MEMORY_TYPE_KV_CACHE
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, unwrap_write_loc

from hata_kernels.tally import SIZE as TALLY_SIZE
from hata_sglang.decoding import LayerCache
from hata_sglang.decoding.warm import warm_encoders
from hata_sglang.seams.session import Session


def make_pool_class(session: Session) -> type[MHATokenToKVPool]:
    """Class of the KV pool that also keeps this session's codes.

    Parameters
    ----------
    session : Session
        Its `encoders` say which layers are coded, with how many bits, and whether with scales.

    Returns
    -------
    type
        Drop-in for ``MHATokenToKVPool`` (sglang/srt/mem_cache/memory_pool.py), with
        ``codes``: dict of layer to int32 ``[size + page_size, Hkv, bits // 32]``; ``scales``: dict
        of layer to uint8 or int16 (low 16 bits) ``[size + page_size, Hkv]``, of the layers that
        have them; ``encoders``: dict of layer to Encoder, in float32 on a CPU, else in the cache's
        dtype; ``tallies``: dict of sparse layer to int64 ``[4]`` (`hata_kernels.tally`).
    """

    class HataMHATokenToKVPool(MHATokenToKVPool):
        hata_session = session

        def _create_buffers(self):
            slots = self.size + self.page_size
            # The same region as K and V: SGLang releases and resumes the three together.
            with self.memory_saver_adapter.region(GPU_MEMORY_TYPE_KV_CACHE):
                self.codes = {
                    layer: torch.zeros(
                        slots, e.num_kv_heads, e.words, dtype=torch.int32, device=self.device
                    )
                    for layer, e in session.encoders.items()
                }
                self.scales = {
                    layer: torch.zeros(
                        slots, e.num_kv_heads, dtype=e.scale_dtype, device=self.device
                    )
                    for layer, e in session.encoders.items()
                    if e.scale_bits
                }
            # Not released with the keys: what was counted stays.
            sparse = [plan.layer for plan in session.sparse_plans]
            tallies = torch.zeros(len(sparse), TALLY_SIZE, dtype=torch.int64, device=self.device)
            self.tallies = dict(zip(sparse, tallies, strict=True))
            # On a GPU the projections run on tensor cores, in the keys' dtype; the CPU
            # reference computes in float32 and keeps the weights so.
            on_cpu = torch.device(self.device).type == "cpu"
            self.encoders = {
                layer: e.to(self.device, torch.float32 if on_cpu else self.dtype)
                for layer, e in session.encoders.items()
            }
            super()._create_buffers()
            if not on_cpu:
                warm_encoders(self.encoders, self.codes, self.scales, self.dtype)

        def _clear_buffers(self):
            del self.codes, self.scales
            super()._clear_buffers()

        def get_kv_size_bytes(self):
            # SGLang logs K and V apart; codes and scales belong to the keys.
            k_bytes, v_bytes = super().get_kv_size_bytes()
            return k_bytes + sum(buffer.nbytes for buffer in self._beside_keys()), v_bytes

        def _beside_keys(self):
            return (*self.codes.values(), *self.scales.values())

        def set_kv_buffer(self, layer, loc_info, cache_k, cache_v, *args, **kwargs):
            # Before super(): an fp8 pool would divide K in place.
            layer_id = kwargs.get("layer_id_override")
            self.encode_keys(
                layer.layer_id if layer_id is None else layer_id,
                unwrap_write_loc(loc_info)[0],
                cache_k,
            )
            super().set_kv_buffer(layer, loc_info, cache_k, cache_v, *args, **kwargs)

        def write_step(self, layer, loc_info, cache_k, cache_v, *, codes: bool):
            """Write keys and values of a decode step, and codes unless the decoder will.

            Returns the keys ``[bs, Hkv, D]`` and their slots ``[bs]``.
            """
            write = self.set_kv_buffer if codes else super().set_kv_buffer
            write(layer, loc_info, cache_k, cache_v)
            return cache_k.reshape(-1, self.head_num, self.head_dim), unwrap_write_loc(loc_info)[0]

        def layer_cache(self, layer_id: int) -> LayerCache:
            """What a layer keeps, codes beside keys."""
            beside = (self.codes.get(layer_id), self.scales.get(layer_id))
            return LayerCache(*self.get_kv_buffer(layer_id), *beside)

        def encode_keys(self, layer_id: int, slots: torch.Tensor, keys: torch.Tensor) -> None:
            """Write codes and scales of ``keys [T, Hkv, D]`` to ``slots [T]`` of a coded layer."""
            encoder = self.encoders.get(layer_id)
            if encoder is None:
                return
            encoder.encode_keys(
                keys.reshape(-1, self.head_num, self.head_dim),
                codes=self.codes[layer_id],
                slots=slots,
                scales=self.scales.get(layer_id),
                tally=self.tallies[layer_id],
            )

        def move_kv_cache(self, tgt_loc, src_loc):
            super().move_kv_cache(tgt_loc, src_loc)
            for buffer in self._beside_keys():
                buffer[tgt_loc] = buffer[src_loc]

        def load_cpu_copy(self, kv_cache_cpu, indices, *args: Any, **kwargs: Any):
            super().load_cpu_copy(kv_cache_cpu, indices, *args, **kwargs)
            for layer_id in self.encoders:
                self.encode_keys(layer_id, indices, self._get_key_buffer(layer_id)[indices])

    return HataMHATokenToKVPool
