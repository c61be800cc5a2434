"""Logits -> what policies read: the predicted token, its confidence, log-odds, margin, entropy, top-k, drift.

Once per position, in float32 (or the logits' own dtype if that is wider), in chunks that bound memory: no softmax
tensor over the vocabulary outlives its chunk. All statistics come from e_v = exp(z_v - z_max) with the winner's own
term set apart, so that s = sum of the others stays exact when the winner is nearly certain:

    p = 1/(1+s)    log p/(1-p) = -log s    margin = (1 - max e)/(1+s)    H = log(1+s) - sum e (z - z_max)/(1+s)
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from components.types import Needs

LOG_ODDS_LIMIT = 30.0
CHUNK_BYTES = 64 * 2**20


def predict(logits_NV: Tensor, forbidden_ids: Tensor) -> Tensor:
    """A copy of the logits in at least float32, with what must never be committed at -inf."""
    wide = logits_NV.dtype if logits_NV.dtype in (torch.float32, torch.float64) else torch.float32
    logits_NV = logits_NV.to(wide, copy=True)
    logits_NV[:, forbidden_ids] = -torch.inf
    return logits_NV


def statistics(logits_NV: Tensor, needs: Needs) -> dict[str, Tensor]:
    """Statistics of each row of ``predict``'s logits; keys are Observation's field names without their axes.

    Overwrites ``logits_NV``. Ties go to the lowest id.
    """
    top_N1, token_N1 = logits_NV.max(-1, keepdim=True)
    shifted_NV = logits_NV.sub_(top_N1)
    others_NV = shifted_NV.exp().scatter_(-1, token_N1, 0.0)
    s_N1 = others_NV.sum(-1, keepdim=True)
    limit = math.exp(-LOG_ODDS_LIMIT)
    second_N1 = others_NV.amax(-1, keepdim=True)
    confidence_N1 = 1 / (1 + s_N1)
    found = {
        "token": token_N1,
        "confidence": confidence_N1,
        "log_odds": -s_N1.clamp(min=limit, max=1 / limit).log(),
        "margin": (1 - second_N1) * confidence_N1,
    }
    if needs.top_k:
        kept = min(needs.top_k, logits_NV.shape[-1] - 1)
        others_Nk = torch.cat([torch.ones_like(s_N1), others_NV.topk(max(kept - 1, 0), -1).values], -1)
        found["top"] = torch.nn.functional.pad(others_Nk * confidence_N1, (0, needs.top_k - others_Nk.shape[-1]))
    # -inf * 0 at the forbidden ids must count as 0.
    expected_N1 = others_NV.mul_(shifted_NV.clamp_(min=-1e4)).sum(-1, keepdim=True)
    found["entropy"] = torch.log1p(s_N1) - expected_N1 * confidence_N1
    return {name: value if name == "top" else value.squeeze(-1) for name, value in found.items()}


def log_softmax(logits_NV: Tensor) -> Tensor:
    return torch.log_softmax(logits_NV, -1)


def drift(now_NV: Tensor, before_NV: Tensor) -> Tensor:
    """(N,) KL(p_t || p_{t-1}) from log-probabilities (KLASS, arXiv 2511.05664); +inf where there was none (NaN)."""
    p_NV = now_NV.exp()
    kl_N = torch.where(p_NV > 0, p_NV * (now_NV - before_NV), 0.0).sum(-1)
    return torch.where(kl_N.isnan(), torch.inf, kl_N.clamp(min=0.0))


def read(
    head: Callable[[Tensor], Tensor], hidden_ND: Tensor, forbidden_ids: Tensor, needs: Needs, vocabulary: int
) -> dict[str, Tensor]:
    """Statistics of N positions from their hidden states; ``log_probs`` (N, V) too if the needs ask for drift.

    The head runs chunk by chunk, so that no more than ``CHUNK_BYTES`` of logits exist at a time.
    """
    rows = max(1, CHUNK_BYTES // (4 * vocabulary))
    parts: list[dict[str, Tensor]] = []
    for chunk_ND in hidden_ND.split(rows) if len(hidden_ND) else [hidden_ND]:
        logits_NV = predict(head(chunk_ND), forbidden_ids)
        kept = {"log_probs": log_softmax(logits_NV)} if needs.drift else {}
        parts.append(statistics(logits_NV, needs) | kept)
    return parts[0] if len(parts) == 1 else {name: torch.cat([p[name] for p in parts]) for name in parts[0]}
