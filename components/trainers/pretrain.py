"""Training of an embedded dLLM with the masked-diffusion objective.

The negative evidence lower bound of a masked diffusion model is, up to the factor L, the mean over a uniform number n
of masks and a uniform set of that size of the mean cross-entropy at the masked positions (Ou et al. 2024, any-order
form; LLaDA, eq. 3, has the continuous-time form with 1/t). Drawing n instead of t leaves out the variance of 1/t.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import workers
from ..core.rng import generator
from ..denoisers.transformer import TransformerDenoiser
from .clipping import clip_finite

PIECE = 64  # rows whose gradient is computed at a time


def mask_some(answer_BL: Tensor, mask_id: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """The canvas with a uniform number (1 to L) of uniformly chosen masks per row, and the mask positions."""
    rows, length = answer_BL.shape
    count_B1 = torch.randint(1, length + 1, (rows, 1), generator=source)
    rank_BL = torch.rand(rows, length, generator=source).argsort(-1).argsort(-1)
    masked_BL = rank_BL < count_B1
    return answer_BL.masked_fill(masked_BL, mask_id), masked_BL


def loss_of(
    denoiser: TransformerDenoiser, prompt_BP: Tensor, attend_BP: Tensor, answer_BL: Tensor, source: torch.Generator
) -> Tensor:
    """Mean over rows of the mean cross-entropy at the masked positions, in nats per token."""
    canvas_BL, masked_BL = mask_some(answer_BL, denoiser.mask_id, source)
    ids_BT = torch.cat([prompt_BP, canvas_BL], 1)
    attend_BT = torch.cat([attend_BP, torch.ones_like(masked_BL)], 1)
    hidden_BLD = denoiser.features(ids_BT, attend_BT)[:, prompt_BP.shape[1] :]
    logits_NV = denoiser.model.lm_head(hidden_BLD[masked_BL])
    loss_N = F.cross_entropy(logits_NV.float(), answer_BL[masked_BL], reduction="none")
    weight_N = (1 / masked_BL.sum(-1, keepdim=True)).expand_as(masked_BL)[masked_BL]
    return (loss_N * weight_N).sum() / len(answer_BL)


@dataclass(frozen=True)
class Batch:
    """Rows of one task: prompt ids and their attention mask, answer ids, and the batch's weight in the loss."""

    prompt_BP: Tensor
    attend_BP: Tensor
    answer_BL: Tensor
    weight: float

    def pieces(self) -> list[Batch]:
        """The fewest equal pieces of at most ``PIECE`` rows; their weights add up to the batch's."""
        parts = -(-len(self.answer_BL) // PIECE)
        split = zip(*(t.tensor_split(parts) for t in (self.prompt_BP, self.attend_BP, self.answer_BL)), strict=True)
        return [Batch(p, a, x, self.weight * len(x) / len(self.answer_BL)) for p, a, x in split]


def optimizers_for(model: torch.nn.Module, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, head and norms. Measured on 4x4 sudoku, loss
    after 200 steps of 128: AdamW alone .52, this .25 (.31 and .30 at half and twice the rate)."""
    inside = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    chosen = {id(p) for p in inside}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(inside, lr=10 * learning_rate, momentum=0.95, weight_decay=0.01, adjust_lr_fn="original"),
        torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def _backward(
    denoiser: TransformerDenoiser,
    batches: list[Batch],
    parameters: list[torch.nn.Parameter],
    address: tuple[object, ...],
) -> dict[str, float]:
    """Add the batches' gradients to the parameters'; return the loss of each batch.

    Pieces of the batches run in parallel. The pieces, their draws and the order of the sums do not depend on the number
    of workers.
    """
    pieces = [(n, i, p) for n, batch in enumerate(batches) for i, p in enumerate(batch.pieces())]

    def loss(number: int, index: int, piece: Batch):
        source = generator(*address, number, index)
        value = loss_of(denoiser, piece.prompt_BP, piece.attend_BP, piece.answer_BL, source)
        return piece.weight * value, (number, piece.weight * float(value.detach()))

    works = [lambda piece=piece: loss(*piece) for piece in pieces]
    losses = dict.fromkeys((f"loss/{n}" for n in range(len(batches))), 0.0)
    for number, share in workers.add_gradients(works, parameters):
        losses[f"loss/{number}"] += share / batches[number].weight
    return losses


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up over ``warmup`` of the ``steps``, then a cosine to zero."""

    steps: int
    learning_rate: float
    warmup: int
    seed: int

    def share_at(self, step: int) -> float:
        """The learning rate at a step over ``learning_rate``."""
        return min(1.0, (step + 1) / max(self.warmup, 1)) * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def pretrain(
    denoiser: TransformerDenoiser,
    batches: Callable[[int], list[Batch]],
    schedule: Schedule,
    report: Callable[[int, dict[str, float]], None],
) -> None:
    """Train in place. ``batches(step)``: one batch per task, their gradients are added up."""
    model = denoiser.model.train().requires_grad_(True)
    optimizers = optimizers_for(model, schedule.learning_rate)
    first = [[group["lr"] for group in o.param_groups] for o in optimizers]
    for step in range(schedule.steps):
        rate = schedule.share_at(step)
        for optimizer, rates in zip(optimizers, first, strict=True):
            optimizer.zero_grad(set_to_none=True)
            for group, base in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = base * rate
        losses = _backward(denoiser, batches(step), list(model.parameters()), (schedule.seed, "pretrain", step))
        norm = clip_finite(model, 1.0, sum(losses.values()), f"step {step} of pretraining")
        for optimizer in optimizers:
            optimizer.step()
        report(step, losses | {"gradient_norm": norm})
    denoiser.model.eval().requires_grad_(False)
