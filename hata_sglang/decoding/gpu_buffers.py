"""Device memory of the GPU decoder: what captured graphs, or one eager step, read and write."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch

from hata_kernels.attend import AttendBuffers, DenseBuffers
from hata_kernels.encoders import Encoder
from hata_kernels.rank import RankBuffers, RankSizes, shared_values
from hata_kernels.rows import RowGroups
from hata_sglang.config import Budget, LayerPlan
from hata_sglang.shape import AttentionShape, ModelShape

#: Bytes per exact score that top-k by PyTorch takes while it runs: sort keys and a copy of them.
TOPK_BYTES = 16


#: Triton compiles a kernel anew where a number is a multiple of 16, or is not. Tiles of the ranking
#: have 1,024 tokens at most.
EAGER_STEP = 16 * 1024


def eager_width(longest: int, context_len: int) -> int:
    """Width of the buffers of an eager step, such that only powers of two compile anything."""
    return min(-(-longest // EAGER_STEP) * EAGER_STEP, context_len)


def k_max(budget: Budget, context_len: int, width: int) -> int:
    """Slots that a row of at most `width` tokens can need under a budget."""
    return min(budget.k_max(context_len), width)


def rank_key(encoder: Encoder) -> int:
    """Which layers share the ranking's buffers: those with tiles of one size."""
    return rank_sizes(encoder, 1, 1).tile


def encoder_kind(encoder: Encoder) -> tuple:
    """Which layers share the scratch of their encoders: they run one after the other."""
    return type(encoder), encoder.bits


def scratch_bytes(encoders: Mapping[int, Encoder], tokens: int) -> int:
    """Bytes of the encoders' scratch for steps of up to so many tokens."""
    kinds = {encoder_kind(encoder): encoder for encoder in encoders.values()}
    meta = torch.device("meta")
    return sum(tensor_bytes(encoder.step_scratch(tokens, meta)) for encoder in kinds.values())


def tensor_bytes(holder: object) -> int:
    """Bytes of the tensors that an object has; 0 of None."""
    held = () if holder is None else vars(holder).values()
    return sum(tensor.nbytes for tensor in held if isinstance(tensor, torch.Tensor))


def may_share(bs: int, width: int) -> bool:
    """Whether so many rows of at most so many tokens can make a group of `RowGroups`."""
    return bs >= RowGroups.LEAST and width >= RowGroups.UNIT


def rank_sizes(encoder: Encoder, width: int, most: int, bs: int = 1) -> RankSizes:
    """Sizes of the ranking of `bs` contexts of `width` tokens and selections of `most`."""
    shape = (encoder.num_kv_heads, encoder.words)
    values = shared_values(*shape, encoder.plane_weights) if may_share(bs, width) else 0
    return RankSizes.of(*shape, encoder.levels, width, most, values)


def most_tokens(encoder: Encoder) -> int:
    """Longest context whose tokens can be ranked by an encoder's codes."""
    return RankSizes.most_tokens(encoder.num_kv_heads, encoder.words, encoder.levels)


@dataclasses.dataclass(frozen=True)
class BufferSizes:
    """Sizes of `Buffers` for some layers.

    Attributes
    ----------
    shape : AttentionShape
    bs, width : int
        Rows, and tokens of the longest context.
    most : int
        Slots of the largest selection.
    rank : dict of int to RankSizes
        By `rank_key`, of the layers whose methods keep codes.
    exact : bool
        Whether a layer ranks by exact scores, and whether by PyTorch's top-k.
    exact_topk : bool
    dense : bool
        Whether dense layers are decoded too.
    """

    shape: AttentionShape
    bs: int
    width: int
    most: int
    rank: dict[int, RankSizes]
    exact: bool
    exact_topk: bool
    dense: bool

    @classmethod
    def of(
        cls,
        plans: Sequence[LayerPlan],
        encoders: Mapping[int, Encoder],
        shape: ModelShape,
        *,
        bs: int,
        width: int,
        dense: bool,
    ) -> BufferSizes:
        """Sizes for all of a decoder's layers together."""
        rank: dict[int, RankSizes] = {}
        for plan in plans:
            encoder = encoders.get(plan.layer)
            if encoder is None:
                continue
            key = rank_key(encoder)
            sizes = rank_sizes(encoder, width, k_max(plan.budget, shape.context_len, width), bs)
            rank[key] = sizes.with_room_for(rank.get(key, sizes))
        exact = [plan for plan in plans if plan.ranks == "scores"]
        most = max(k_max(plan.budget, shape.context_len, width) for plan in plans)
        topk = any(not plan.budget.is_fixed for plan in exact)
        return cls(shape, bs, width, most, rank, bool(exact), topk, dense)

    @property
    def grouped(self) -> bool:
        """Whether a layer can read once what rows share."""
        # Where rows may not share, no size of the ranking has values.
        dense = self.dense and may_share(self.bs, self.width)
        return dense or any(sizes.values for sizes in self.rank.values())

    @property
    def heads(self) -> tuple[int, int, int]:
        """Query heads, KV heads and their size."""
        return self.shape.num_heads, self.shape.num_kv_heads, self.shape.head_dim

    @property
    def nbytes(self) -> int:
        """Bytes of `Buffers`, selections and the scratch of exact layers included."""
        made = Buffers(self, (), torch.device("meta"))
        parts = (made, made.groups, made.dense, made.attend, *made.rank.values())
        row = 4 * self.most + TOPK_BYTES * self.exact_topk * self.width
        return sum(map(tensor_bytes, parts)) + self.bs * self.shape.num_kv_heads * row


class Buffers:
    """Rows of a step, and scratch that its layers use one after the other.

    Parameters
    ----------
    sizes : BufferSizes
    budgets : iterable of Budget
        The layers'.
    device : torch.device
    """

    def __init__(self, sizes: BufferSizes, budgets: Sequence[Budget], device: torch.device):
        shape, rows, most = sizes.shape, sizes.bs * sizes.shape.num_kv_heads, sizes.most
        make = {"dtype": torch.int32, "device": device}
        self.token_slots = torch.empty(sizes.bs, sizes.width, **make)
        self.seq_lens = torch.ones(sizes.bs, **make)
        # A plain number of tokens never changes; a share of the context does in every step.
        shares = [budget for budget in budgets if not budget.is_fixed]
        self.shares = tuple(budget.share for budget in shares)
        self.share_budgets = torch.ones(len(shares), sizes.bs, **make)
        self.budgets = dict(zip(shares, self.share_budgets, strict=True))
        for budget in budgets:
            if budget.is_fixed:
                tokens = min(budget.max, sizes.width)
                self.budgets[budget] = torch.full((sizes.bs,), tokens, **make)
        self.groups = RowGroups(sizes.bs, sizes.width, device) if sizes.grouped else None
        self.rank = {key: RankBuffers(rows, of, device) for key, of in sizes.rank.items()}
        self.dense = DenseBuffers(sizes.bs, *sizes.heads, device) if sizes.dense else None
        self.attend = AttendBuffers(rows, shape.group, shape.head_dim, most, device)
        self.scores = None
        if sizes.exact:
            self.scores = torch.empty(sizes.bs, shape.num_kv_heads, sizes.width, device=device)
