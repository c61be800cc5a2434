"""Logits -> what policies read: the predicted token, its confidence, log-odds, margin, entropy, top-k, drift.

Once per position, in float32 (or the logits' own dtype if that is wider), in chunks that bound memory: no softmax
tensor over the vocabulary outlives its chunk, and no statistic is computed that nobody reads. The winner is set apart,
so that everything stays exact when it is nearly certain. With g = z - z_max <= 0 over the others and s = sum of e^g:

    p = 1/(1+s)    log p/(1-p) = -log s    margin = p (1 - e^(max g))    H = log(1+s) - p sum g e^g
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..core.types import Needs

LOG_ODDS_LIMIT = 30.0
_PIECE = 512  # ids
_LARGE = 8 * _PIECE  # a vocabulary that is read by pieces
_SMALLEST = -87.32  # its exponential is a normal float32, a little above the smallest
_SURE = -40.0
NEVER = -1e30
"""The logit of what must not be committed: probability 0, but finite, so that 0 times it is 0."""


def predict(logits_NV: Tensor, forbidden_ids: Tensor) -> Tensor:
    """A copy of the logits in at least float32, with ``NEVER`` at what must not be committed."""
    wide = logits_NV.dtype in (torch.float32, torch.float64)
    copy_NV = logits_NV.clamp(min=NEVER) if wide else logits_NV.float().clamp_(min=NEVER)
    return copy_NV.index_fill_(-1, forbidden_ids, NEVER)


def statistics(logits_NV: Tensor, needs: Needs) -> dict[str, Tensor]:
    """Statistics of each row of ``predict``'s logits; keys are Observation's field names without their axes. Each is
    the same number whatever else is asked for. The confidence is NaN where the largest logit is NaN, infinite, or that
    of a forbidden id, and nowhere else.

    Overwrites ``logits_NV``. Ties go to the lowest id.
    """
    vocabulary, asked = logits_NV.shape[-1], set(needs.statistics)
    top_N1, token_N1 = _winner(logits_NV)
    rest_NV = logits_NV.scatter_(-1, token_N1, NEVER)
    for token in needs.late:  # few; a tensor of them would have to be sent to the device
        rest_NV[:, token] = NEVER
    ids_NK = _largest(rest_NV, token_N1, needs.top_k) if needs.top_ids else None
    gap_NV = rest_NV.sub_(top_N1)
    next_Nk = None if ids_NK is None else gap_NV.gather(-1, ids_NK[:, 1:vocabulary])
    if needs.top_k and next_Nk is None:
        next_Nk = gap_NV.topk(min(needs.top_k, vocabulary) - 1, -1).values
    second_N = None
    if asked & {"margin", "entropy"}:
        second_N = gap_NV.amax(-1) if next_Nk is None or not next_Nk.shape[-1] else next_Nk[:, 0]
    odds_NV = _odds(gap_NV, second_N if "entropy" in asked else None)
    s_N = odds_NV.sum(-1)
    usable_N = top_N1.squeeze(-1).abs() < -NEVER
    confidence_N = torch.where(usable_N, 1 / (1 + s_N), torch.nan)
    found = {"token": token_N1.squeeze(-1), "confidence": confidence_N}
    if "log_odds" in asked:
        limit = math.exp(-LOG_ODDS_LIMIT)
        found["log_odds"] = -s_N.clamp(min=limit, max=1 / limit).log()
    if second_N is not None and "margin" in asked:
        found["margin"] = -torch.expm1(second_N) * confidence_N
    if next_Nk is not None:
        top_Nk = torch.nn.functional.pad(next_Nk.exp(), (1, needs.top_k - 1 - next_Nk.shape[-1]))
        top_Nk[:, 0] = 1
        found["top"] = top_Nk * confidence_N.unsqueeze(-1)
    if ids_NK is not None:
        found["top_ids"] = ids_NK
    if "entropy" in asked:
        found["entropy"] = torch.log1p(s_N) - gap_NV.mul_(odds_NV).sum(-1) * confidence_N
    return found


def _winner(logits_NV: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 1) the largest logit and the lowest id that has it: of a large vocabulary in one pass, by pieces, as a CPU
    takes ten times as long for a place as for a value."""
    vocabulary = logits_NV.shape[-1]
    if vocabulary < _LARGE:
        top_N1, token_N1 = logits_NV.max(-1, keepdim=True)
        return top_N1, token_N1
    whole = vocabulary - vocabulary % _PIECE
    peak_NC = _pieces(logits_NV[:, :whole]).amax(-1)
    if whole < vocabulary:
        peak_NC = torch.cat([peak_NC, logits_NV[:, whole:].amax(-1, keepdim=True)], -1)
    top_N1 = peak_NC.amax(-1, keepdim=True)
    id_NM = _first(peak_NC == top_N1) * _PIECE + torch.arange(_PIECE, device=logits_NV.device)
    id_NM = id_NM.clamp_(max=vocabulary - 1)
    return top_N1, id_NM.gather(-1, _first(logits_NV.gather(-1, id_NM) == top_N1))


def _pieces(values_NV: Tensor) -> Tensor:
    """(N, C, _PIECE) a view of as many ids as make whole pieces."""
    pieces: Tensor = values_NV.unflatten(-1, (-1, _PIECE))
    return pieces


def _first(there_NV: Tensor) -> Tensor:
    """(N, 1) the lowest place that is true."""
    return there_NV.to(torch.uint8).argmax(-1, keepdim=True)


def _odds(gap_NV: Tensor, second_N: Tensor | None) -> Tensor:
    """e^gap; in the place of the gaps where they are not needed again: where ``second_N``, the largest of each row, is
    not given.

    Below e^-87 float32 is subnormal, and a CPU takes 16 to 70 times as long for it. All of a vocabulary's subnormal
    terms are less than e^-75, and are left out where that moves no bit: of s, as the log-odds end at -30; of an
    entropy, unless its largest term is of that size.
    """
    into_NV = gap_NV if second_N is None else None
    small = gap_NV.dtype == torch.float32 and gap_NV.device.type == "cpu"
    if not small or (second_N is not None and bool((second_N < _SURE).any())):
        return torch.exp(gap_NV, out=into_NV)
    odds_NV = torch.exp(gap_NV.clamp_(min=_SMALLEST), out=into_NV)
    return torch.threshold_(odds_NV, math.exp(_SMALLEST + 0.01), 0.0)


def _largest(rest_NV: Tensor, token_N1: Tensor, top_k: int) -> Tensor:
    """(N, top_k) the winner, then the ids of the largest values, equal ones by the lowest id; -1 behind the last."""
    kept = min(top_k, rest_NV.shape[-1])
    if rest_NV.dtype == torch.float32:
        value_NM, id_NM = _candidates(rest_NV, kept - 1)
        key_NM = _keys(value_NM, id_NM).masked_fill_(id_NM == token_N1, -(2**63))
        ids_NK = _ids_of(key_NM.topk(kept - 1, -1).values)
    else:
        ids_NK = rest_NV.scatter(-1, token_N1, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
    return torch.nn.functional.pad(torch.cat([token_N1, ids_NK[:, : kept - 1]], -1), (0, top_k - kept), value=-1)


def _candidates(values_NV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(N, M) values and ids, the ``count`` largest among them: of a large vocabulary the ids of those pieces whose own
    largest come first, as each of these comes before whatever another piece has."""
    vocabulary, device = values_NV.shape[-1], values_NV.device
    whole = vocabulary - vocabulary % _PIECE
    if whole < _LARGE or count >= whole // _PIECE:
        return values_NV, torch.arange(vocabulary, device=device).expand_as(values_NV)
    value_NCP = _pieces(values_NV[:, :whole])
    peak_NC = value_NCP.amax(-1)
    first_Nk = _ids_of(_keys(peak_NC, torch.arange(whole // _PIECE, device=device)).topk(count, -1).values)
    place_Nk1 = first_Nk.unsqueeze(-1)
    found_NkP = value_NCP.gather(1, place_Nk1.expand(-1, -1, _PIECE))
    id_NkP = place_Nk1 * _PIECE + torch.arange(_PIECE, device=device)
    tail_Nt = torch.arange(whole, vocabulary, device=device).expand(len(values_NV), -1)
    return torch.cat([found_NkP.flatten(1), values_NV[:, whole:]], -1), torch.cat([id_NkP.flatten(1), tail_Nt], -1)


def _keys(values: Tensor, ids: Tensor) -> Tensor:
    """int64 that order like float32 values, equal ones by the lowest id: no two are equal, so that no device's way with
    ties matters."""
    bits = (values + 0.0).view(torch.int32)  # adding 0 turns -0 into 0
    bits = bits ^ ((bits >> 31) & (2**31 - 1))
    return (bits.long() << 32) | (2**32 - 1 - ids)


def _ids_of(keys: Tensor) -> Tensor:
    return 2**32 - 1 - (keys & (2**32 - 1))


def log_odds_of(
    head: Callable[[Tensor], Tensor], hidden_ND: Tensor, forbidden_ids: Tensor, token_N: Tensor, vocabulary: int
) -> Tensor:
    """(N,) log p/(1-p) of the given tokens, whether or not they are the predicted ones; clamped as the statistic is."""
    outer, inner = (max(1, size // (4 * vocabulary)) for size in chunk_bytes(hidden_ND.device))
    parts: list[Tensor] = []
    for some_ND, tokens_N in zip(hidden_ND.split(outer), token_N.split(outer), strict=True):
        for raw_NV, token_n in zip(head(some_ND).split(inner), tokens_N.split(inner), strict=True):
            logits_NV = predict(raw_NV, forbidden_ids)
            own_N1 = logits_NV.gather(-1, token_n.unsqueeze(-1))
            rest_N = logits_NV.scatter_(-1, token_n.unsqueeze(-1), NEVER).logsumexp(-1)
            parts.append((own_N1.squeeze(-1) - rest_N).clamp(-LOG_ODDS_LIMIT, LOG_ODDS_LIMIT))
    return torch.cat(parts) if parts else hidden_ND.new_zeros(0)


def drift(now_NV: Tensor, before_NV: Tensor) -> Tensor:
    """(N,) KL(p_t || p_{t-1}) from log-probabilities (KLASS, arXiv 2511.05664); +inf where there was none (NaN)."""
    p_NV = now_NV.exp()
    kl_N = torch.where(p_NV > 0, p_NV * (now_NV - before_NV), 0.0).sum(-1)
    return torch.where(kl_N.isnan(), torch.inf, kl_N.clamp(min=0.0))


def chunk_bytes(device: torch.device) -> tuple[int, int]:
    """Logits that exist at a time, and of these what the statistics go over at a time. A head over few positions reads
    its weights for little; the statistics take several passes, on a CPU in the cache."""
    return (64 * 2**20, 2 * 2**20) if device.type == "cpu" else (512 * 2**20, 512 * 2**20)


def read(
    head: Callable[[Tensor], Tensor], hidden_ND: Tensor, forbidden_ids: Tensor, needs: Needs, vocabulary: int
) -> dict[str, Tensor]:
    """Statistics of N positions from their hidden states; ``log_probs`` (N, V) too if the needs ask for drift."""
    outer, inner = (max(1, size // (4 * vocabulary)) for size in chunk_bytes(hidden_ND.device))
    parts: list[dict[str, Tensor]] = []
    for some_ND in hidden_ND.split(outer) if len(hidden_ND) else [hidden_ND]:
        for raw_NV in head(some_ND).split(inner) if len(some_ND) else [head(some_ND)]:
            logits_NV = predict(raw_NV, forbidden_ids)
            kept = {"log_probs": logits_NV.log_softmax(-1)} if needs.drift else {}
            parts.append(statistics(logits_NV, needs) | kept)
    return parts[0] if len(parts) == 1 else {name: torch.cat([p[name] for p in parts]) for name in parts[0]}
