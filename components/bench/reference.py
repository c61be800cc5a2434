"""The decode loop as public code writes it: lock step, the head at every position, a softmax over the vocabulary,
finished rows kept until the slowest row of the batch ends. Written to be read beside ``rollout``, which must decide
the same; it shares no code with it but the policies, the noise and the types.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..core.rng import Noise, row_keys
from ..core.timer import Timer
from ..core.types import Action, Canvas, Needs, Observation, Rollout, Steps
from ..decode.job import DecodeOptions, Job
from ..decode.readout import LOG_ODDS_LIMIT
from ..denoisers.protocol import Denoiser, attended
from ..maths.distributions import commit
from ..policies.protocol import Policy


def reference_rollout(
    denoiser: Denoiser,
    policies: Policy | Sequence[Policy],
    job: Job,
    options: DecodeOptions,
    timer: Timer | None = None,
) -> Rollout:
    """Decodes the job in batches of ``options.rows`` (None: all in one), in its own order; ``refill``, ``reuse``
    and ``memory`` are not for it.

    The result's (row, step) pairs come batch by batch, step by step.
    """
    many = list(policies) if isinstance(policies, Sequence) else [policies]
    with torch.no_grad():
        rows = torch.arange(len(job)).split(options.rows or max(len(job), 1))
        parts = [_lock_step(denoiser, many, job, rows_B, options, timer or Timer()) for rows_B in rows]
    put: dict[str, Any] = {
        name: torch.cat([getattr(p, name) for p in parts])
        for name in ("canvas_RL", "order_RL", "nfe_R", "finished_R", "policy_R")
    }
    recorded = [p.steps for p in parts if p.steps is not None]
    steps = Steps.concatenate(recorded) if recorded else None
    forwards, useful = sum(p.forwards for p in parts), sum(p.useful for p in parts)
    return Rollout(**put, forwards=forwards, useful=useful, steps=steps, shares=parts[0].shares)


def _lock_step(
    denoiser: Denoiser, policies: list[Policy], job: Job, rows_B: Tensor, options: DecodeOptions, timer: Timer
) -> Rollout:
    at, steps = _Rows(denoiser, job, rows_B, options), list[Steps]()
    needs = _needs(policies, options)
    given = {"answer_BL": _answers(job, rows_B, at.masked_BL.shape[1]).to(denoiser.device)} if needs.answer else {}
    state, past = denoiser.start(Canvas(at.ids_BT, at.attend_BT, at.start)), None
    changed_B, forwards, useful = torch.ones_like(at.step_B).bool(), 0, 0
    while bool((busy_B := at.busy_B).any()):
        forwards += len(rows_B)
        useful += int(((changed_B & busy_B) if denoiser.stateless else busy_B).sum())
        present_B1, eligible_BL = at.present(busy_B)
        block_BT = torch.nn.functional.pad(at.block_BL == present_B1, (at.start, 0))
        with timer("denoiser"):
            canvas = Canvas(at.ids_BT, at.attend_BT, at.start, block_BT)
            hidden_BTD, attention_BLLA, state = attended(denoiser, canvas, state, needs.attention)
        valid_BL = at.attend_BT[:, at.start :]
        where_BL = {"eligible": eligible_BL, "masked": at.masked_BL, "all": valid_BL}[needs.where]
        with timer("readout"):
            logits_BTV = denoiser.logits(hidden_BTD.flatten(0, 1)).unflatten(0, hidden_BTD.shape[:2])
            seen, past = softmax_statistics(logits_BTV[:, at.start :], denoiser.forbidden_ids, needs, where_BL, past)
            fields: dict[str, Any] = seen | given | _features(hidden_BTD, at.attend_BT, at.start, needs)
            if attention_BLLA is not None:
                fields |= {"attention_BLLA": attention_BLLA, "attention_layers": needs.attention}
        obs = Observation(at.masked_BL, eligible_BL, at.step_B, at.length_B, **fields)
        with timer("policy"):
            action = _act(policies, obs, Noise(at.key_B, at.step_B), at.policy_B, options)
        with timer("bookkeeping"):
            if options.record:
                recorded = _record(policies, obs, action, rows_B, at.policy_B, options)
                steps.append(recorded.pairs(busy_B.nonzero().squeeze(1)))
            assert action.committed_BL is not None
            commit_BL = action.committed_BL & busy_B.unsqueeze(1)
            changed_B = commit_BL.any(-1)
            at.commit(commit_BL, seen["token_BL"], busy_B, present_B1)
    canvas_RL = at.ids_BT[:, at.start :].masked_fill(~at.attend_BT[:, at.start :], -1)
    finished_B, joined = ~at.masked_BL.any(-1), Steps.concatenate(steps) if steps else None
    return Rollout(canvas_RL, at.order_BL, at.step_B, finished_B, at.policy_B, forwards, useful, joined)


class _Rows:
    """A batch's canvases and where each of them is."""

    def __init__(self, denoiser: Denoiser, job: Job, rows_B: Tensor, options: DecodeOptions) -> None:
        self.frontier, self.end_ids, self.limit = job.frontier, job.end_ids, options.step_limit
        self.ids_BT, self.attend_BT, self.start = _lay_out(denoiser, job, rows_B)
        self.length_B, size_B, self.policy_B = (
            t[rows_B].to(denoiser.device) for t in (job.length_R, job.block_R, job.policy_R)
        )
        self.key_B = row_keys(options.seed, job.uid_R[rows_B], job.member_R[rows_B]).to(denoiser.device)
        self.masked_BL = self.attend_BT[:, self.start :].clone()
        self.order_BL = torch.full_like(self.masked_BL, -1, dtype=torch.int64)
        if job.canvas_RL is not None:
            given_BL = job.canvas_RL[rows_B].to(denoiser.device)
            kept_BL = self.masked_BL & (given_BL >= 0)
            self.ids_BT[:, self.start :] = torch.where(kept_BL, given_BL, denoiser.mask_id)
            self.masked_BL &= given_BL < 0
        self.asked_BL, self.asked_B = self.masked_BL, self.masked_BL.sum(-1)
        self.block_BL = torch.arange(self.masked_BL.shape[1], device=denoiser.device) // size_B.unsqueeze(1)
        # Blocks left behind, which step_limit "block" does with masks in them; steps in the present one; steps.
        self.passed_B, self.in_block_B, self.step_B = (torch.zeros_like(self.length_B) for _ in range(3))

    @property
    def open_BL(self) -> Tensor:
        """Masked positions in blocks that are not left behind; the first such block is the present one."""
        return self.masked_BL & (self.block_BL >= self.passed_B.unsqueeze(1))

    @property
    def busy_B(self) -> Tensor:
        return self.open_BL.any(-1) & (self.step_B < self.asked_B)

    def present(self, busy_B: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1) each row's present block, and its eligible positions."""
        open_BL = self.open_BL & busy_B.unsqueeze(1)
        present_B1 = self.block_BL.masked_fill(~open_BL, len(self.block_BL[0])).amin(-1, keepdim=True)
        eligible_BL = open_BL & (self.block_BL == present_B1)
        if self.frontier is not None:
            eligible_BL &= eligible_BL.cumsum(-1) <= self.frontier
        return present_B1, eligible_BL

    def commit(self, commit_BL: Tensor, token_BL: Tensor, busy_B: Tensor, present_B1: Tensor) -> None:
        canvas_BL = torch.where(commit_BL, token_BL, self.ids_BT[:, self.start :])
        self.masked_BL = self.masked_BL & ~commit_BL
        self.order_BL = torch.where(commit_BL, self.step_B.unsqueeze(1), self.order_BL)
        if self.end_ids:
            self.masked_BL = _end_texts(canvas_BL, self.masked_BL, self.order_BL, self.end_ids)
        self.ids_BT = torch.cat([self.ids_BT[:, : self.start], canvas_BL], 1)
        self.step_B, self.in_block_B = self.step_B + busy_B, self.in_block_B + 1
        if self.limit == "block":
            most_B = (self.asked_BL & (self.block_BL == present_B1)).sum(-1)
            self.passed_B = torch.where(self.in_block_B >= most_B, present_B1.squeeze(-1) + 1, self.passed_B)
        left_B = (self.open_BL & (self.block_BL == present_B1)).any(-1)  # behind the frontier too
        self.in_block_B = self.in_block_B.masked_fill(~left_B, 0)


def _lay_out(denoiser: Denoiser, job: Job, rows_B: Tensor) -> tuple[Tensor, Tensor, int]:
    """Ids, attention and the canvas's first column: prompts padded on the left to the batch's longest."""
    prompts = [job.prompts[p] for p in job.prompt_R[rows_B].tolist()]
    start, longest = max(map(len, prompts)), int(job.length_R.max())
    ids_BT = torch.full((len(rows_B), start + longest), denoiser.mask_id)
    attend_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids_BT[row, start - len(prompt) : start] = prompt
        attend_BT[row, start - len(prompt) : start + int(job.length_R[rows_B[row]])] = True
    return ids_BT.to(denoiser.device), attend_BT.to(denoiser.device), start


def _end_texts(canvas_BL: Tensor, masked_BL: Tensor, order_BL: Tensor, end_ids: tuple[int, ...]) -> Tensor:
    """The masks that are left; behind a committed end without a mask before it they are filled, in ``canvas_BL``."""
    left_BL = masked_BL.clone()
    for row in range(len(canvas_BL)):
        for place in range(canvas_BL.shape[1]):
            if bool(masked_BL[row, place]):
                break
            if int(order_BL[row, place]) >= 0 and int(canvas_BL[row, place]) in end_ids:
                canvas_BL[row, masked_BL[row]] = end_ids[0]
                left_BL[row] = False
                break
    return left_BL


def softmax_statistics(
    logits_BLV: Tensor, forbidden_ids: Tensor, needs: Needs, where_BL: Tensor, past: tuple[Tensor, Tensor] | None
) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor] | None]:
    """The Observation's statistics by their definitions on a softmax, zero outside ``where_BL``; and what drift needs
    of this step: the log-probabilities and the drifts so far."""
    logits_BLV = logits_BLV.to(torch.promote_types(logits_BLV.dtype, torch.float32), copy=True)
    logits_BLV[..., forbidden_ids] = -torch.inf
    token_BL1 = logits_BLV.argmax(-1, keepdim=True)
    log_BLV = logits_BLV.log_softmax(-1)
    for token in needs.late:  # out of all statistics but drift, except where it is predicted itself
        logits_BLV[..., token] = logits_BLV[..., token].where(token_BL1.squeeze(-1) == token, -torch.inf)
    p_BLV = logits_BLV.softmax(-1)
    top_BL = p_BLV.gather(-1, token_BL1).squeeze(-1)
    rest_BLV = p_BLV.scatter(-1, token_BL1, 0.0)
    odds_BL = top_BL.log() - rest_BLV.sum(-1).log()
    found = {
        "token_BL": token_BL1.squeeze(-1),
        "confidence_BL": top_BL,
        "log_odds_BL": odds_BL.clamp(-LOG_ODDS_LIMIT, LOG_ODDS_LIMIT),
        "margin_BL": top_BL - rest_BLV.amax(-1),
        "entropy_BL": torch.special.entr(p_BLV).sum(-1),
    }
    if needs.top_k:
        kept = min(needs.top_k, p_BLV.shape[-1])
        found["top_BLK"] = torch.nn.functional.pad(p_BLV.topk(kept, -1).values, (0, needs.top_k - kept))
    if needs.top_ids:
        falling_BLV, ids_BLV = torch.sort(logits_BLV, dim=-1, descending=True, stable=True)
        ids_BLK = ids_BLV.masked_fill(falling_BLV == -torch.inf, -1)[..., : needs.top_k]
        short = needs.top_k - ids_BLK.shape[-1]
        found["top_ids_BLK"] = torch.nn.functional.pad(ids_BLK, (0, short), value=-1)
    found = {name: t.where(where_BL.view(*where_BL.shape, *[1] * (t.ndim - 2)), 0) for name, t in found.items()}
    if not needs.drift:
        return found, None
    p_BLV, log_BLV = log_BLV.exp(), log_BLV.masked_fill(~where_BL.unsqueeze(-1), torch.nan)
    if past is None:
        past = (torch.full_like(log_BLV, torch.nan), log_BLV.new_full((*where_BL.shape, needs.drift), torch.inf))
    kl_BL = torch.where(p_BLV > 0, p_BLV * (log_BLV - past[0]), 0.0).sum(-1)
    drift_BLH = torch.cat([kl_BL.nan_to_num(torch.inf).unsqueeze(-1), past[1][..., :-1]], -1)
    return found | {"drift_BLH": drift_BLH}, (log_BLV, drift_BLH)


def _features(hidden_BTD: Tensor, attend_BT: Tensor, start: int, needs: Needs) -> dict[str, Any]:
    if needs.features == "sequence":
        return {"features_BTD": hidden_BTD, "attend_BT": attend_BT, "canvas_start": start}
    return {"features_BTD": hidden_BTD[:, start:]} if needs.features == "canvas" else {}


def _answers(job: Job, rows_B: Tensor, length: int) -> Tensor:
    assert job.answers is not None
    found = [job.answers[p] for p in job.prompt_R[rows_B].tolist()]
    return torch.stack([torch.nn.functional.pad(a, (0, length - len(a)), value=-1) for a in found])


def _needs(policies: list[Policy], options: DecodeOptions) -> Needs:
    joint = options.needs
    for policy in policies:
        joint = joint | policy.needs
    return joint | Needs(where="masked") if options.record and options.steer_all_masks else joint


def _act(policies: list[Policy], obs: Observation, noise: Noise, policy_B: Tensor, options: DecodeOptions) -> Action:
    """Every policy draws for every row; a row takes its own policy's draw."""
    drawn_BL, committed_BL = torch.zeros_like(obs.masked_BL), torch.zeros_like(obs.masked_BL)
    rank_BL = None if len(policies) == 1 else torch.full_like(drawn_BL, -1, dtype=torch.int64)
    for number, policy in enumerate(policies):
        distribution = policy.distribution(obs)
        drawn = distribution.mode() if options.choose == "mode" else distribution.sample(noise)
        action = commit(distribution, drawn, obs.eligible_BL, options.force_commit)
        if rank_BL is None:
            return action
        assert action.committed_BL is not None
        own_B1 = (policy_B == number).unsqueeze(1)
        # What an unordered expert commits counts as drawn best first.
        order_BL = action.rank_BL
        if order_BL is None and number > 0 and options.record:
            order_BL = _places(policy.score(obs), action.committed_BL)
        rank_BL = rank_BL if order_BL is None else torch.where(own_B1, order_BL, rank_BL)
        drawn_BL = torch.where(own_B1, action.drawn_BL, drawn_BL)
        committed_BL = torch.where(own_B1, action.committed_BL, committed_BL)
    return Action(drawn_BL, rank_BL, committed_BL)


def _places(score_BL: Tensor, chosen_BL: Tensor) -> Tensor:
    """How many of the chosen positions have a higher score, or the same and come first; -1 where not chosen."""
    mine_BL1, theirs_B1L = score_BL.unsqueeze(2), score_BL.unsqueeze(1)
    first_LL = torch.ones(score_BL.shape[1], score_BL.shape[1], device=score_BL.device).tril(-1) > 0
    before_BLL = chosen_BL.unsqueeze(1) & ((theirs_B1L > mine_BL1) | ((theirs_B1L == mine_BL1) & first_LL))
    return before_BLL.sum(-1).masked_fill(~chosen_BL, -1)


def _record(
    policies: list[Policy], obs: Observation, action: Action, rows_B: Tensor, policy_B: Tensor, options: DecodeOptions
) -> Steps:
    """What an expert committed counts as drawn, over all masks if ``widen``."""
    assert action.committed_BL is not None
    steered_B1 = (policy_B > 0).unsqueeze(1)
    if options.steer_all_masks:
        obs = replace(obs, eligible_BL=torch.where(steered_B1, obs.masked_BL, obs.eligible_BL))
    action = replace(action, drawn_BL=torch.where(steered_B1, action.committed_BL, action.drawn_BL))
    return Steps(rows_B, obs.step_B, obs, action, policies[0].distribution(obs).log_prob(action))


def one_canvas(
    denoiser: Denoiser, prompt: Tensor, length: int, per_step: int | None, threshold: float = 1.0
) -> tuple[Tensor, int]:
    """One canvas as public samplers decode it, and its forward passes: the head and a softmax at every position of the
    sequence, the confidence of each argmax, then the ``per_step`` largest or, where that is None, those that reach the
    threshold and the largest. Full diffusion; no other statistic, no noise."""
    ids_1T = torch.cat([prompt, torch.full((length,), denoiser.mask_id)]).unsqueeze(0).to(denoiser.device)
    attend_1T, steps = torch.ones_like(ids_1T, dtype=torch.bool), 0
    canvas_T = torch.arange(ids_1T.shape[1], device=denoiser.device) >= len(prompt)
    while bool((open_T := (ids_1T[0] == denoiser.mask_id) & canvas_T).any()):
        hidden_1TD, _ = denoiser.hidden(Canvas(ids_1T, attend_1T, len(prompt)), None)
        logits_TV = denoiser.logits(hidden_1TD[0])
        logits_TV[:, denoiser.forbidden_ids] = -torch.inf
        token_T = logits_TV.argmax(-1)
        sure_T = logits_TV.softmax(-1).gather(-1, token_T.unsqueeze(-1)).squeeze(-1).masked_fill(~open_T, -torch.inf)
        if per_step is None:
            chosen_T = (sure_T >= threshold) | (sure_T == sure_T.max())
        else:
            chosen_T = torch.zeros_like(open_T).scatter(0, sure_T.topk(min(per_step, int(open_T.sum()))).indices, True)
        ids_1T = torch.where(chosen_T & open_T, token_T, ids_1T)
        steps += 1
    return ids_1T[0, len(prompt) :], steps
