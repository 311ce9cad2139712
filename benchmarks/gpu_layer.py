"""Static GPU buffers of one attention layer, for check_gpu_kernels.py and time_gpu_kernels.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from hata_kernels.attend import SparseDecode, workspace_bytes
from hata_kernels.encode import encode
from hata_kernels.score import score, score_dtype

CUDA = torch.device("cuda")
BITS, SINK, RECENT = 128, 16, 32


def require(condition: bool, message: str) -> None:
    """Raise AssertionError unless ``condition``, also under ``python -O``."""
    if not condition:
        raise AssertionError(message)


@dataclass(frozen=True)
class Model:
    """Attention shape of one layer."""

    name: str
    q_heads: int
    kv_heads: int
    dim: int

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.q_heads // self.kv_heads

    @property
    def plane_weights(self) -> tuple[int, ...]:
        """One query plane per head of the group: symmetric codes."""
        return (1,) * self.group


LLAMA = Model("Llama-3.1-8B", 32, 8, 128)
SMOLLM = Model("SmolLM2-135M", 9, 3, 64)
QWEN = Model("Qwen2.5-7B", 28, 4, 128)  # group 7: FlashInfer's tensor-core kernels


class Layer:
    """Static GPU buffers of one layer and one batch, as a server keeps them.

    Parameters
    ----------
    model : Model
        Attention shape.
    batch, width : int
        Requests, and the longest context.
    slots : int
        Size of the KV pool; slot 0 is reserved.
    """

    def __init__(self, model: Model, batch: int, width: int, slots: int) -> None:
        self.model, self.batch, self.width, self.slots = model, batch, width, slots
        pool = (slots, model.kv_heads, model.dim)
        self.q = torch.empty(batch, model.q_heads, model.dim, device=CUDA, dtype=torch.bfloat16)
        self.k_cache = torch.randn(pool, device=CUDA, dtype=torch.bfloat16)
        self.v_cache = torch.randn(pool, device=CUDA, dtype=torch.bfloat16)
        self.weight = torch.randn(model.kv_heads, model.dim, BITS, device=CUDA).bfloat16()
        self.codes = encode(self.k_cache, self.weight)
        self.token_slots = torch.zeros(batch, width, device=CUDA, dtype=torch.int32)
        self.seq_lens = torch.ones(batch, device=CUDA, dtype=torch.int64)
        dtype = score_dtype(model.plane_weights, BITS)
        self.scores = torch.empty(batch, model.kv_heads, width, device=CUDA, dtype=dtype)

    def fill(self, lengths: list[int]) -> None:
        """Fresh queries and page tables for requests of these lengths, in place.

        Requests share no slots as far as the pool suffices.
        """
        self.q.normal_()
        self.seq_lens.copy_(torch.tensor(lengths))
        order = torch.empty(0, dtype=torch.int32, device=CUDA)
        for row, length in enumerate(lengths):
            if length > len(order):
                order = 1 + torch.randperm(self.slots - 1, device=CUDA).int()
            self.token_slots[row].fill_(self.slots - 1)  # garbage, but inside the pool
            self.token_slots[row, :length] = order[:length]
            order = order[length:]

    def score(self, q_codes: torch.Tensor) -> torch.Tensor:
        """Score into the layer's buffer."""
        return score(
            q_codes, self.codes, self.token_slots, self.seq_lens,
            plane_weights=self.model.plane_weights, sink=SINK, recent=RECENT, out=self.scores,
        )  # fmt: skip


def make_decode(
    model: Model, batch: int, k_max: int, graph: bool, shared: dict | None = None
) -> SparseDecode:
    """SparseDecode with a workspace of its own, or of ``shared``."""
    if shared is None:
        sms = torch.cuda.get_device_properties(CUDA).multi_processor_count
        size = workspace_bytes(batch * model.kv_heads, model.group, model.dim, sms)
        shared = {"workspace": torch.zeros(size, dtype=torch.uint8, device=CUDA)}
    return SparseDecode(
        max_batch=batch, num_kv_heads=model.kv_heads, group=model.group, head_dim=model.dim,
        k_max=k_max, dtype=torch.bfloat16, device=CUDA, scale=model.dim**-0.5,
        use_cuda_graph=graph, **shared,
    )  # fmt: skip


def capture(step: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """Warm up on a side stream, then capture."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph
