"""Losses that hash weights are trained with.

Both score codes as serving does. `paper_loss` is HATA's (arXiv 2506.02572,
learning-to-hash section); `attention_loss` asks for the attention of the
group itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PaperLoss:
    """Constants of HATA's loss.

    Parameters
    ----------
    epsilon : float
        Weight of the similarity term.
    balance : float
        Weight of the balance term (the paper's eta).
    decorrelation : float
        Weight of the decorrelation term (the paper's lambda).
    sigma : float
        Slope of the relaxed sign, ``2 * sigmoid(sigma * x) - 1``.
    top_share : float
        Share of a query's keys that get a positive label.
    top_label, last_label : float
        Labels of the best and the last of these, linear in between.
    other_label : float
        Label of all other keys.
    """

    epsilon: float = 0.01
    balance: float = 2.0
    decorrelation: float = 1.0
    sigma: float = 0.1
    top_share: float = 0.1
    top_label: float = 20.0
    last_label: float = 1.0
    other_label: float = -1.0


def relaxed_sign(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """``h(x) = 2 * sigmoid(sigma * x) - 1``, elementwise (HATA, learning to hash)."""
    return 2 * torch.sigmoid(sigma * x) - 1


def similarity_labels(
    scores: torch.Tensor, valid: torch.Tensor, constants: PaperLoss
) -> torch.Tensor:
    """Similarity labels of HATA: a query's best keys decay linearly, all others get one label.

    Parameters
    ----------
    scores : torch.Tensor
        ``[..., S]``, q.k of one query with its keys.
    valid : torch.Tensor
        ``[..., S]`` bool, keys that the query sees. Others get the label 0.
    constants : PaperLoss

    Returns
    -------
    torch.Tensor
        ``[..., S]`` float32.
    """
    masked = scores.masked_fill(~valid, -torch.inf)
    # scores that tie keep their order, so that labels do not depend on the sort
    rank = masked.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    top = (valid.sum(-1, keepdim=True) * constants.top_share).floor()
    fraction = rank / (top - 1).clamp_min(1)
    decayed = constants.top_label + fraction * (constants.last_label - constants.top_label)
    labels = torch.where(rank < top, decayed, constants.other_label)
    return labels.masked_fill(~valid, 0.0)


def paper_loss(
    q: torch.Tensor,
    k: torch.Tensor,
    labels: torch.Tensor,
    weight: torch.Tensor,
    constants: PaperLoss,
) -> torch.Tensor:
    """HATA's loss, summed over KV heads.

    Means over keys stand where the paper writes sums, as in the published
    code: sums over thousands of keys make SGD at the paper's rate diverge.

    Parameters
    ----------
    q : torch.Tensor
        ``[Hkv, N, G, D]`` float32.
    k : torch.Tensor
        ``[Hkv, S, D]`` float32.
    labels : torch.Tensor
        ``[Hkv, N, G, S]`` float32 from `similarity_labels`.
    weight : torch.Tensor
        ``[Hkv, D, r]`` float32, trained.
    constants : PaperLoss

    Returns
    -------
    torch.Tensor
        Scalar.

    Notes
    -----
    - similarity: mean over queries and keys, sum over the heads of a group, of
      ``s * |h(q) - h(k)|^2``.
    - balance: ``|mean over keys of h(k)|^2 / r^2``, per KV head.
    - decorrelation: Frobenius norm of ``W^T W - I``, per KV head.
    """
    bits = weight.shape[-1]
    hq = relaxed_sign(q @ weight[:, None], constants.sigma)
    hk = relaxed_sign(k @ weight, constants.sigma)
    # |a - b|^2 = |a|^2 + |b|^2 - 2 a.b avoids a [N, G, S, r] difference.
    dots = (hq.flatten(1, 2) @ hk.transpose(1, 2)).view(labels.shape)
    distance = hq.pow(2).sum(-1, keepdim=True) + hk.pow(2).sum(-1)[:, None, None] - 2 * dots
    similarity = (labels * distance).mean((1, 3)).sum()
    balance = (hk.mean(1) / bits).pow(2).sum()
    gram = weight.transpose(1, 2) @ weight - torch.eye(bits, device=weight.device)
    decorrelation = torch.linalg.matrix_norm(gram).sum()
    return (
        constants.epsilon * similarity
        + constants.balance * balance
        + constants.decorrelation * decorrelation
    )


class _StraightThroughSign(torch.autograd.Function):
    """Sign forward, derivative of ``tanh`` backward."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return torch.where(x > 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (1 - torch.tanh(x).pow(2))


def straight_through_sign(x: torch.Tensor) -> torch.Tensor:
    """+1 where ``x > 0``, else -1; gradients pass as through ``tanh(x)``.

    Parameters
    ----------
    x : torch.Tensor
        Float32 of any shape, of about unit size: far larger values get no gradient.
    """
    return _StraightThroughSign.apply(x)


def attention_loss(
    q: torch.Tensor,
    k: torch.Tensor,
    attention: torch.Tensor,
    eligible: torch.Tensor,
    weight: torch.Tensor,
    query_scale: torch.Tensor,
    log_temperature: torch.Tensor,
    key_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross entropy between the group's attention and the softmax of its code scores.

    Codes are the true signs in the forward pass, and scores are summed over
    the group, so the loss sees exactly what serving ranks by. Only keys that
    compete for the budget take part: sink and recent tokens are kept anyway.

    Parameters
    ----------
    q : torch.Tensor
        ``[Hkv, N, G, D]`` float32.
    k : torch.Tensor
        ``[Hkv, S, D]`` float32.
    attention : torch.Tensor
        ``[Hkv, N, S]`` float32, true attention averaged over the group, zero
        where not `eligible`; rows with more mass to win weigh more.
    eligible : torch.Tensor
        ``[N, S]`` bool.
    weight : torch.Tensor
        ``[Hkv, D, r]`` float32, trained; projections of k of about unit size.
    query_scale : torch.Tensor
        Scalar or ``[Hkv, 1, 1]``; brings projections of q to about unit size.
    log_temperature : torch.Tensor
        ``[Hkv, 1, 1]``, trained; multiplies scores scaled to [-1, 1].
    key_scale : torch.Tensor, optional
        ``[Hkv, S]`` float32 of about 1, multiplies the scores of each key.

    Returns
    -------
    torch.Tensor
        Scalar, summed over KV heads, mean over queries.
    """
    _, count, group, _ = q.shape
    codes = straight_through_sign(q.flatten(1, 2) @ weight * query_scale)
    votes = codes.unflatten(1, (count, group)).sum(2)
    scores = votes @ straight_through_sign(k @ weight).transpose(1, 2)
    scores = scores / (group * weight.shape[-1]) * log_temperature.exp()
    if key_scale is not None:
        scores = scores * key_scale[:, None]
    log_share = scores.masked_fill(~eligible, -torch.inf).log_softmax(-1)
    # 0 * -inf is NaN: ineligible keys have no attention to explain.
    return -(attention * log_share.masked_fill(~eligible, 0.0)).sum((0, 2)).mean()


def take_step(
    loss: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler | None,
) -> torch.Tensor:
    """Descend along a loss; return it detached, so that nothing waits for a device."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if schedule is not None:
        schedule.step()
    return loss.detach()
