"""THE decode loop: training, evaluation, serving and the parity tests all run it.

Per-row step counters; blocks in order; a finished row is never touched again. Every step with something eligible
costs one NFE. A row stops after as many steps as its canvas is long (``cap="canvas"``); with ``cap="block"``, paper
A's parity switch, a block ends after as many steps as it is long and what is left in it stays masked.

Fast without changing a decision: finished rows leave and waiting rows take their places; a row whose canvas did not
change is not sent through a stateless denoiser again; the output head runs only at positions somebody reads; no Python
loop over rows; noise is a function of the row's address, not of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from components.denoisers.protocol import Denoiser
from components.flight import Flight, Job, admit, look
from components.maths.distributions import commit
from components.policies.protocol import Policy
from components.rng import Noise
from components.stopwatch import Stopwatch
from components.types import Action, Needs, Observation, Rollout, Steps

__all__ = ["Job", "Options", "advance", "is_over", "rollout"]


@dataclass(frozen=True)
class Options:
    """How a job is decoded. The first four change results, the last three only the cost.

    seed    the run's seed, part of every row's noise address.
    choose  "sample" or "mode".
    force   commit the best position where a draw is empty (evaluation always; training: empty_draw "forced").
    cap     "canvas" or "block", see above.
    record  keep every step's observation, action and log-probability.
    widen   record rows that another policy drew with all masks eligible (expert steering: the learning policy is to
            learn the block order too).
    rows    rows in flight at most.
    refill  waiting rows join as soon as others finish; False: the next ``rows`` start when all have finished.
    reuse   do not ask a stateless denoiser twice about one canvas.
    """

    seed: int = 0
    choose: str = "sample"
    force: bool = True
    cap: str = "canvas"
    record: bool = False
    widen: bool = False
    rows: int = 256
    refill: bool = True
    reuse: bool = True


def rollout(
    denoiser: Denoiser,
    policies: Policy | Sequence[Policy],
    job: Job,
    options: Options = Options(),  # noqa: B008 (frozen)
    watch: Stopwatch | None = None,
    progress: Callable[[int], None] | None = None,
) -> Rollout:
    """Decodes every row of the job. ``policies[0]`` is the learning one; ``job.policy_R`` says who draws which row.

    progress is called with the number of rows that have just finished.
    """
    many = list(policies) if isinstance(policies, Sequence) else [policies]
    watch = watch or Stopwatch()
    needs = _needs(many, job, options)
    with torch.no_grad():
        return _run(denoiser, many, job, options, needs, watch, progress)


def _needs(policies: list[Policy], job: Job, options: Options) -> Needs:
    needs = policies[0].needs
    for policy in policies[1:]:
        needs = needs | policy.needs
    return needs | Needs(where="masked") if options.record and options.widen else needs


def _run(
    denoiser: Denoiser, policies: list[Policy], job: Job, options: Options, needs: Needs, watch: Stopwatch,
    progress: Callable[[int], None] | None,
) -> Rollout:  # fmt: skip
    waiting = _queue(job)
    flight, waiting = admit(job, waiting[: options.rows], denoiser, options.seed), waiting[options.rows :]
    landed: list[Flight] = []
    records: list[Steps] = []
    forwards = useful = 0
    every = not (options.reuse and denoiser.stateless)
    while len(flight):
        useful += int(flight.stale_B.sum()) if every else 0
        flight, asked = look(flight, denoiser, needs, watch, every)
        forwards += asked
        useful += 0 if every else asked
        with watch("policy"):
            obs = flight.observation(needs, flight.eligible_BL)
            action = _act(policies, obs, flight, options)
        with watch("bookkeeping"):
            if options.record:
                records.append(_record(policies, obs, action, flight, options.widen))
            flight = advance(flight, action, needs, options)
            over_B = is_over(flight, options)
            if bool(over_B.any()):
                landed.append(_land(flight, over_B))
                flight = flight.keep(~over_B)
                if progress is not None:
                    progress(len(landed[-1]))
                room = options.rows - len(flight)
                if len(waiting) and (options.refill or not len(flight)):
                    flight = flight.join(admit(job, waiting[:room], denoiser, options.seed))
                    waiting = waiting[room:]
    return _collect(landed, records, len(job), forwards, useful, denoiser.mask_id)


def _queue(job: Job) -> Tensor:
    """Rows by prompt length, then canvas length, so that neighbours in a batch need little padding."""
    prompt_P = torch.tensor([len(p) for p in job.prompts], dtype=torch.int64)
    return (prompt_P[job.prompt_R] * (int(job.length_R.max()) + 1) + job.length_R).argsort(stable=True)


def _act(policies: list[Policy], obs: Observation, flight: Flight, options: Options) -> Action:
    noise = Noise(flight.key_B, flight.step_B)
    if len(policies) == 1:
        return _draw(policies[0], obs, noise, options)
    drawn_BL = torch.zeros_like(obs.masked_BL)
    committed_BL, rank_BL = torch.zeros_like(drawn_BL), torch.full_like(obs.masked_BL, -1, dtype=torch.int64)
    for number, policy in enumerate(policies):
        rows_b = (flight.policy_B == number).nonzero().squeeze(1)
        if len(rows_b):
            part = _draw(policy, obs.rows(rows_b), Noise(noise.key_B[rows_b], noise.step_B[rows_b]), options)
            assert part.committed_BL is not None
            drawn_BL[rows_b], committed_BL[rows_b] = part.drawn_BL, part.committed_BL
            # An unordered rule's picks count as drawn by position.
            order = part.rank_BL if part.rank_BL is not None else part.drawn_BL.cumsum(-1) - 1
            rank_BL[rows_b] = order.masked_fill(~part.drawn_BL, -1)
    return Action(drawn_BL, rank_BL, committed_BL)


def _draw(policy: Policy, obs: Observation, noise: Noise, options: Options) -> Action:
    distribution = policy.distribution(obs)
    action = distribution.mode() if options.choose == "mode" else distribution.sample(noise)
    return commit(distribution, action, obs.eligible_BL, options.force)


def _record(policies: list[Policy], obs: Observation, action: Action, flight: Flight, widen: bool) -> Steps:
    if len(policies) > 1:
        assert action.committed_BL is not None
        steered_B1 = (flight.policy_B > 0).unsqueeze(1)
        if widen:
            obs = replace(obs, eligible_BL=torch.where(steered_B1, obs.masked_BL, obs.eligible_BL))
        action = replace(action, drawn_BL=torch.where(steered_B1, action.committed_BL, action.drawn_BL))
    log_prob_B = policies[0].distribution(obs).log_prob(action)
    return Steps(flight.row_B, flight.step_B, obs, action, log_prob_B)


def advance(flight: Flight, action: Action, needs: Needs, options: Options) -> Flight:
    """Commits, counts the step, moves on to the next block where this one is done."""
    commit_BL = action.committed_BL
    assert commit_BL is not None
    canvas_BL = torch.where(commit_BL, flight.fields["token_BL"], flight.ids_BT[:, flight.start :])
    masked_BL = flight.masked_BL & ~commit_BL
    changed_B = commit_BL.any(-1)
    left_B = (flight.eligible_BL & ~commit_BL).any(-1)
    in_block_B = flight.in_block_B + 1
    next_B = ~left_B | (in_block_B >= flight.size_B) if options.cap == "block" else ~left_B
    # A new block without a changed canvas still needs its positions read.
    stale_B = flight.stale_B | changed_B | (next_B if needs.where == "eligible" else torch.zeros_like(next_B))
    return replace(
        flight,
        ids_BT=torch.cat([flight.ids_BT[:, : flight.start], canvas_BL], 1),
        masked_BL=masked_BL,
        order_BL=torch.where(commit_BL, flight.step_B.unsqueeze(1), flight.order_BL),
        step_B=flight.step_B + 1,
        block_B=flight.block_B + next_B,
        in_block_B=in_block_B.masked_fill(next_B, 0),
        stale_B=stale_B,
    )


def is_over(flight: Flight, options: Options) -> Tensor:
    done_B = ~flight.masked_BL.any(-1) | (flight.step_B >= flight.length_B)
    return done_B | (flight.block_B * flight.size_B >= flight.length_B) if options.cap == "block" else done_B


def _land(flight: Flight, over_B: Tensor) -> Flight:
    """The finished rows with nothing but their results: memory grows with results, not with fields."""
    return replace(flight, fields={}, state=None).keep(over_B)


def _collect(landed: list[Flight], records: list[Steps], rows: int, forwards: int, useful: int, mask_id: int) -> Rollout:
    def put(parts: list[Tensor]) -> Tensor:
        value = torch.cat(parts)
        return torch.empty_like(value).index_copy(0, row_R, value)

    if not landed:
        none = torch.zeros(0, dtype=torch.int64)
        return Rollout(none.reshape(0, 0), none.reshape(0, 0), none, none.bool(), none, 0, 0)
    row_R = torch.cat([f.row_B for f in landed])
    assert len(row_R) == rows
    valid_RL = put([f.attend_BT[:, f.start :] for f in landed])
    canvas_RL = put([f.ids_BT[:, f.start :] for f in landed]).masked_fill(~valid_RL, -1)
    steps = None
    if records:
        steps = Steps(torch.cat([s.row_N for s in records]), torch.cat([s.step_N for s in records]),
                      Observation.concatenate([s.observation for s in records]), _join([s.action for s in records]),
                      torch.cat([s.log_prob_N for s in records]))  # fmt: skip
    return Rollout(canvas_RL, put([f.order_BL for f in landed]), put([f.step_B for f in landed]),
                   ~put([f.masked_BL for f in landed]).any(-1), put([f.policy_B for f in landed]),
                   forwards, useful, steps)  # fmt: skip


def _join(actions: list[Action]) -> Action:
    def cat(name: str) -> Tensor | None:
        parts = [getattr(a, name) for a in actions]
        return None if parts[0] is None else torch.cat(parts)

    drawn = cat("drawn_BL")
    assert drawn is not None
    return Action(drawn, cat("rank_BL"), cat("committed_BL"))
