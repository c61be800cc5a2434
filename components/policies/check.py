"""Checks of a policy class against the protocol. Each violation is a sentence.

What would corrupt a decode or a training without an error is provoked on small random observations: draws outside the
eligible positions, likelihoods that do not sum to 1, rows that depend on their neighbors or on padding.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.rng import Noise, generator
from ..core.types import Action, Needs, Observation
from ..maths.distributions import commit
from .protocol import Policy

ROWS, LENGTH, WORDS, PROMPT = 4, 5, 12, 2
TOLERANCE = 1e-4


def missing_parts(policy: object) -> list[str]:
    """The parts of the protocol that an object lacks."""
    return [name for name in ("needs", "score", "distribution") if not hasattr(policy, name)]


def check_policy(policy: Policy, width: int = 8) -> list[str]:
    """The violations of the protocol, a sentence each; an empty list for a good policy.

    width: of the hidden states, for a policy that reads them.
    """
    if missing := missing_parts(policy):
        return [f"it has no {', '.join(missing)}, which the protocol names"]
    if not isinstance(policy.needs, Needs):
        return [f"needs is a {type(policy.needs).__name__}, not Needs: the loop would not know what to read"]
    try:
        with torch.no_grad():
            obs = _observation(policy, width)
            return _scores(policy, obs) or _draws(policy, obs) or [*_likelihoods(policy, obs), *_rows(policy, obs)]
    except Exception as error:  # a user's class may raise anything
        return [f"an observation with all that needs names raised {type(error).__name__}: {error}"]


def _observation(policy: Policy, width: int) -> Observation:
    """Rows of different lengths, masks and blocks; the last row has nothing eligible."""
    needs, draw = policy.needs, generator("check", "policy")
    device = next((p.device for p in getattr(policy, "parameters", lambda: iter(()))()), torch.device("cpu"))
    length_B = torch.tensor([LENGTH, LENGTH - 1, LENGTH - 2, LENGTH])
    valid_BL = torch.arange(LENGTH) < length_B.unsqueeze(1)
    masked_BL = valid_BL & torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [0, 1, 1, 0, 0], [0, 1, 0, 1, 1]]).bool()
    eligible_BL = masked_BL & (torch.arange(LENGTH) < 3)
    eligible_BL[-1] = False
    logits_BLV = 3 * torch.randn(ROWS, LENGTH, max(WORDS, needs.top_k), generator=draw)
    fields = _statistics(logits_BLV, needs)
    where_BL = {"eligible": eligible_BL, "masked": masked_BL, "all": valid_BL}[needs.where]
    fields = {n: v * (where_BL if v.ndim == 2 else where_BL.unsqueeze(-1)) for n, v in fields.items()}
    if needs.drift:
        fields["drift_BLH"] = torch.rand(ROWS, LENGTH, needs.drift, generator=draw)
    if needs.answer:
        fields["answer_BL"] = logits_BLV.argmax(-1).roll(1, 0)
    start = PROMPT if needs.features == "sequence" else 0
    if needs.features != "none":
        fields["features_BTD"] = torch.randn(ROWS, start + LENGTH, width, generator=draw)
    if needs.features == "sequence":
        fields["attend_BT"] = F.pad(valid_BL, (PROMPT, 0), value=True)
    layers = needs.attention
    if layers:
        shares = torch.rand(ROWS, LENGTH, LENGTH, len(layers), generator=draw) / LENGTH
        fields["attention_BLLA"] = shares * (valid_BL[:, :, None] & valid_BL[:, None, :]).unsqueeze(-1)
    step_B = torch.arange(ROWS) % 3
    obs = Observation(masked_BL, eligible_BL, step_B, length_B, canvas_start=start, attention_layers=layers, **fields)
    return replace(obs, **{name: value.to(device) for name, value in obs.tensors().items()})


def _statistics(logits_BLV: Tensor, needs: Needs) -> dict[str, Tensor]:
    top_BLV, ids_BLV = logits_BLV.double().softmax(-1).sort(-1, descending=True)
    best_BL = top_BLV[..., 0]
    every = {
        "log_odds": (best_BL.log() - top_BLV[..., 1:].sum(-1).log()).float(),
        "margin": (best_BL - top_BLV[..., 1]).float(),
        "entropy": -torch.special.xlogy(top_BLV, top_BLV).sum(-1).float(),
    }
    fields = {f"{name}_BL": value for name, value in every.items() if name in needs.statistics}
    fields |= {"token_BL": ids_BLV[..., 0], "confidence_BL": best_BL.float()}
    if needs.top_k:
        fields["top_BLK"] = top_BLV[..., : needs.top_k].float()
    if getattr(needs, "top_ids", False):
        fields["top_ids_BLK"] = ids_BLV[..., : needs.top_k]
    return fields


def _scores(policy: Policy, obs: Observation) -> list[str]:
    before = {name: value.clone() for name, value in obs.tensors().items()}
    score_BL, again_BL = policy.score(obs), policy.score(obs)
    changed = [name for name, value in obs.tensors().items() if not torch.equal(before[name], value)]
    if changed:
        return [f"score() changes the observation's {', '.join(changed)}, which is recorded for the update"]
    if score_BL.shape != obs.masked_BL.shape:
        return [f"score() gives {tuple(score_BL.shape)} where the canvas is {tuple(obs.masked_BL.shape)}"]
    open_N = score_BL[obs.eligible_BL]
    found = []
    if bool(open_N.isnan().any()) or bool((open_N == torch.inf).any()):
        found.append("score() is NaN or +inf at eligible positions")
    if not torch.equal(score_BL.nan_to_num(), again_BL.nan_to_num()):
        found.append("score() of one observation differs the second time: what is random belongs into sample(noise)")
    return found


def _noise(obs: Observation, seed: int = 0) -> Noise:
    key_B = torch.arange(len(obs.step_B), device=obs.step_B.device) * 1_000_003 + seed
    return Noise(key_B, obs.step_B)


def _draws(policy: Policy, obs: Observation) -> list[str]:
    distribution = policy.distribution(obs)
    found = []
    for name, action in (("mode()", distribution.mode()), ("sample()", distribution.sample(_noise(obs)))):
        if action.drawn_BL.shape != obs.masked_BL.shape or action.drawn_BL.dtype != torch.bool:
            return [f"{name} draws {action.drawn_BL.dtype} {tuple(action.drawn_BL.shape)}, not bool per position"]
        if bool((action.drawn_BL & ~obs.eligible_BL).any()):
            found.append(f"{name} draws positions that are not eligible")
        forced_BL = commit(distribution, action, obs.eligible_BL, force=True).committed_BL
        assert forced_BL is not None
        if not torch.equal(forced_BL.any(-1), obs.eligible_BL.any(-1)):
            found.append(f"fallback_B names no eligible position where {name} draws none: a decode would never end")
    if not _same(distribution.sample(_noise(obs)), policy.distribution(obs).sample(_noise(obs))):
        found.append("sample() differs under the same noise: a decode could not be repeated")
    return found


def _same(one: Action, other: Action) -> bool:
    return torch.equal(one.drawn_BL, other.drawn_BL)


def _likelihoods(policy: Policy, obs: Observation) -> list[str]:
    """Draws have a finite likelihood, and the outcomes' probabilities sum to 1."""
    distribution = policy.distribution(obs)
    found = []
    drawn = [distribution.sample(_noise(obs, seed)) for seed in range(16)]
    log_SB = torch.stack([distribution.log_prob(action) for action in drawn])
    if log_SB.shape[1:] != obs.step_B.shape:
        return [f"log_prob() gives {tuple(log_SB.shape[1:])}, not one number per row"]
    if not bool(log_SB.isfinite().all()) or bool((log_SB > TOLERANCE).any()):
        found.append("log_prob() of its own draws is not finite, or above 0")
    if drawn[0].rank_BL is None:
        total_B = torch.stack([distribution.log_prob(action).exp() for action in _sets(obs)]).sum(0)
        if bool(((total_B - 1).abs() > TOLERANCE).any()):
            found.append(f"the probabilities of all sets sum to {total_B.tolist()}, not to 1")
    return found


def _sets(obs: Observation) -> list[Action]:
    """Every set of the first three positions, where all eligible ones are. One with other positions has probability
    0."""
    actions = []
    for bits in itertools.product((False, True), repeat=3):
        drawn_BL = torch.zeros_like(obs.eligible_BL)
        drawn_BL[:, :3] = torch.tensor(bits, device=drawn_BL.device)
        actions.append(Action(drawn_BL))
    return actions


def _rows(policy: Policy, obs: Observation) -> list[str]:
    """Violations of batch invariance: a row alone, and with padding behind its canvas."""
    plain_BL = policy.score(obs)
    found = []
    alone = [policy.score(obs.rows(torch.tensor([i], device=plain_BL.device)))[0] for i in range(ROWS)]
    if not _close(torch.stack(alone), plain_BL, obs.eligible_BL):
        found.append("a row alone has another score than in a batch")
    if not _close(policy.score(_wider(obs))[:, :LENGTH], plain_BL, obs.eligible_BL):
        found.append("a row has another score where the batch's canvas is longer: padding is read")
    return found


def _close(one_BL: Tensor, other_BL: Tensor, eligible_BL: Tensor) -> bool:
    one_N, other_N = one_BL[eligible_BL], other_BL[eligible_BL]
    return torch.allclose(one_N, other_N, rtol=TOLERANCE, atol=TOLERANCE)


def _wider(obs: Observation) -> Observation:
    """The observation with two more columns of padding behind the canvas."""
    pads = {"_BL": (0, 2), "_BLK": (0, 0, 0, 2), "_BLH": (0, 0, 0, 2), "_BTD": (0, 0, 0, 2), "_BT": (0, 2)}
    pads["_BLLA"] = (0, 0, 0, 2, 0, 2)
    fields = {}
    for name, value in obs.tensors().items():
        ending = "_" + name.rsplit("_", 1)[1]
        fields[name] = F.pad(value, pads[ending]) if ending in pads else value
    return replace(obs, **fields)
