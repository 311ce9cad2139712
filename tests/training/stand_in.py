"""A model's queries, keys and values by transformers: in place of SGLang's, and to compare with."""

from __future__ import annotations

import torch
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from hata_sglang.seams.recording import Recording


class TransformersModel:
    """As `hata_sglang.seams.model_process.ModelProcess`, in this process and in float32.

    transformers lets callers register an attention function by name, and hands it q, k and v
    exactly as attention uses them.
    """

    def __init__(self, model_dir, device, max_tokens, arguments=()):
        self.model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
        self.max_tokens, self.seen = max_tokens, {}
        AttentionInterface.register("recorded", self._attention)
        AttentionMaskInterface.register("recorded", sdpa_mask)
        self.model.set_attn_implementation("recorded")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def _attention(self, module, query, key, value, attention_mask, **kwargs):
        scale = kwargs.get("scaling")
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        q, k, v = (x[0].transpose(0, 1).to(torch.bfloat16) for x in (query, key, value))
        self.seen[module.layer_idx] = Recording(q, k, v, scale)
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    @torch.no_grad()
    def run(self, jobs, layers):
        for count, job in enumerate(jobs, 1):
            assert len(job.tokens) <= self.max_tokens
            self.model.get_decoder()(input_ids=torch.tensor([job.tokens]), use_cache=False)
            for layer in layers:
                seen = self.seen[layer]
                v = seen.v if job.values else None
                job.write(layer, seen._replace(q=seen.q[job.positions], v=v))
            yield count
