"""Softmax and argmax over a subset of positions; a row without any eligible position gives zeros, never NaN."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_log_softmax(logits_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """log softmax over the positions of ``mask_BL``; -inf elsewhere, and everywhere in a row whose mask is empty."""
    logits_BL = logits_BL.masked_fill(~mask_BL, -torch.inf)
    top_B1 = logits_BL.detach().amax(-1, keepdim=True)
    top_B1 = top_B1.masked_fill(top_B1 == -torch.inf, 0.0)
    shifted_BL = logits_BL - top_B1
    total_B1 = shifted_BL.exp().sum(-1, keepdim=True)
    empty_B1 = ~mask_BL.any(-1, keepdim=True)
    return shifted_BL - total_B1.masked_fill(empty_B1, 1.0).log()


def masked_logsumexp(logits_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """(B,) log of the summed exponentials over ``mask_BL``; -inf for an empty row, with a zero gradient."""
    empty_B = ~mask_BL.any(-1)
    safe_BL = logits_BL.masked_fill(~mask_BL, -torch.inf).masked_fill(empty_B.unsqueeze(-1), 0.0)
    return torch.logsumexp(safe_BL, -1).masked_fill(empty_B, -torch.inf)


def masked_argmax(values_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """(B,) index of the largest eligible value, the lowest index among equals; 0 for an empty row. NaN counts as the
    smallest."""
    values_BL = values_BL.masked_fill(~mask_BL | values_BL.isnan(), -torch.inf)
    best_BL = (values_BL == values_BL.amax(-1, keepdim=True)) & mask_BL
    return best_BL.to(torch.uint8).argmax(-1)


def one_hot(index_B: Tensor, mask_BL: Tensor) -> Tensor:
    """bool (B, L): the position ``index_B`` of each row where ``mask_BL`` allows it."""
    position_L = torch.arange(mask_BL.shape[-1], device=mask_BL.device)
    return (position_L == index_B.unsqueeze(-1)) & mask_BL


def sort_eligible(values_BL: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Indices that put the eligible positions first, by value, largest first, ties by lowest index; and how many.

    An eligible -inf counts as the smallest finite number, so that it stays before what is not eligible.
    """
    finite_BL = values_BL.clamp(min=torch.finfo(values_BL.dtype).min)
    order_BL = finite_BL.masked_fill(~mask_BL, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    return order_BL, mask_BL.sum(-1)


def rank_of(order_BL: Tensor) -> Tensor:
    """The inverse permutation: ``rank_BL[b, order_BL[b, i]] = i``."""
    position_BL = torch.arange(order_BL.shape[-1], device=order_BL.device).expand_as(order_BL)
    return torch.empty_like(order_BL).scatter_(-1, order_BL, position_BL)
