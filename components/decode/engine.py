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
from functools import partial

import torch
from torch import Tensor

from components.core import workers
from components.core.errors import SettingsError
from components.core.rng import Noise
from components.core.timer import Stopwatch
from components.core.types import Action, Needs, Observation, Rollout, Steps
from components.decode import memory
from components.decode.batch import Flight, Job, admit, look, open_block
from components.denoisers.protocol import Denoiser
from components.maths.distributions import ActionDistribution, commit
from components.maths.masked import rank_of, sort_eligible
from components.policies.protocol import Policy

# Positions in flight that are worth a lane: below that the lanes wait for one another's Python.
LANE_TOKENS = 512
_KEEP = 32  # a noise stream that no distribution draws from

__all__ = ["Job", "Options", "advance", "is_over", "rollout"]


@dataclass(frozen=True)
class Options:
    """How a job is decoded. The last six change the cost and no result.

    seed    the run's seed, part of every row's noise address.
    choose  "sample" or "mode".
    force   commit the best position where a draw is empty (evaluation always; training: empty_draw "forced").
    cap     "canvas" or "block", see above.
    record  keep every step's observation, action and log-probability.
    needs   what else the recorded observations must hold: of a reference that will be asked about them.
    keep    share of the steps that is recorded, each with this probability.
    widen   record rows that another policy drew with all masks eligible (expert steering: the learning policy is to
            learn the block order too).
    rows    rows in flight at most; None: as many as are of use.
    lanes   parts of the job that are decoded side by side on a CPU, see ``lanes``; None: as many as are of use.
    memory  bytes for the rows in flight and the forwards, which bound both; None: half of what the device has free.
    tokens  sequence positions in one forward of the denoiser at most; None: what suits the device.
    refill  waiting rows join as soon as others finish; False: the next ``rows`` start when all have finished.
    reuse   do not ask a stateless denoiser twice about one canvas.
    """

    seed: int = 0
    choose: str = "sample"
    force: bool = True
    cap: str = "canvas"
    record: bool = False
    needs: Needs = Needs()  # noqa: RUF009 (frozen)
    keep: float = 1.0
    widen: bool = False
    rows: int | None = None
    lanes: int | None = None
    memory: int | None = None
    tokens: int | None = None
    refill: bool = True
    reuse: bool = True


def rollout(
    denoiser: Denoiser,
    policies: Policy | Sequence[Policy],
    job: Job,
    options: Options = Options(),
    watch: Stopwatch | None = None,
    progress: Callable[[int], None] | None = None,
) -> Rollout:
    """Decodes every row of the job. ``policies[0]`` is the learning one; ``job.policy_R`` says who draws which row.

    progress is called with the number of rows that have just finished, from the lane that finished them.
    """
    many = list(policies) if isinstance(policies, Sequence) else [policies]
    needs = _needs(many, job, options)
    if not len(job):
        none = torch.zeros(0, dtype=torch.int64)
        return Rollout(none.reshape(0, 0), none.reshape(0, 0), none, none.bool(), none, 0, 0)
    waiting, whole = _queue(job, denoiser.mask_id)
    number, rows, tokens = _shares(denoiser, job, options, needs, len(waiting))
    with torch.no_grad():
        landed = [_land(admit(job, whole, denoiser, options.seed), torch.ones_like(whole, dtype=torch.bool))]

    def lane(mine: Tensor, watch: Stopwatch) -> _Lane:
        with torch.no_grad():
            return _run(denoiser, many, job, mine, rows, tokens, options, needs, watch, progress)

    # Every lane has rows of all lengths, and the same ones each time, whichever lane is done first.
    work = [partial(lane, waiting[i::number]) for i in range(number)]
    done = workers.watched(work, watch or Stopwatch())
    return _collect(landed + [part for one in done for part in one.landed], [r for one in done for r in one.records],
                    sum(one.forwards for one in done), sum(one.useful for one in done))  # fmt: skip


def _shares(denoiser: Denoiser, job: Job, options: Options, needs: Needs, waiting: int) -> tuple[int, int, int]:
    """How many lanes decode the job; rows in flight and positions in a forward, of each."""
    sizes = memory.count(job, denoiser, needs, options.record, options.keep)
    budget = memory.budget(denoiser.device) if options.memory is None else options.memory
    whole, most = sum(job.shape), options.rows or waiting
    wanted = options.lanes or workers.count(denoiser.device, min(most, waiting) * whole // LANE_TOKENS)
    number = max(1, min(wanted, most, waiting, budget // (sizes.row + sizes.forward(whole))))
    rows = None if options.rows is None else -(-options.rows // number)
    return number, *memory.fit(sizes, whole, denoiser.device, budget // number, rows, options.tokens)


def _needs(policies: list[Policy], job: Job, options: Options) -> Needs:
    needs = policies[0].needs | options.needs
    for policy in policies[1:]:
        needs = needs | policy.needs
    if needs.answer and job.answers is None:
        raise SettingsError("a policy needs the reference answers, and the job has none; there would be nothing to "
                            "compare with; make the job with answers=True")  # fmt: skip
    return needs | Needs(where="masked") if options.record and options.widen else needs


@dataclass(frozen=True)
class _Lane:
    """What one lane decoded."""

    landed: list[dict[str, Tensor]]
    records: list[Steps]
    forwards: int
    useful: int


def _run(
    denoiser: Denoiser, policies: list[Policy], job: Job, waiting: Tensor, rows: int, tokens: int, options: Options,
    needs: Needs, watch: Stopwatch, progress: Callable[[int], None] | None,
) -> _Lane:  # fmt: skip
    """Decodes the job's ``waiting`` rows, ``rows`` at a time."""
    flight, waiting = admit(job, waiting[:rows], denoiser, options.seed), waiting[rows:]
    landed: list[dict[str, Tensor]] = []
    records: list[Steps] = []
    forwards = useful = 0
    every = not (options.reuse and denoiser.stateless)
    while len(flight):
        # A stateful denoiser says something new every time.
        fresh = int(flight.stale_B.sum()) if every and denoiser.stateless else len(flight)
        flight, asked = look(flight, denoiser, needs, watch, every, tokens)
        forwards, useful = forwards + asked, useful + min(asked, fresh)
        with watch("policy"):
            action, record = _decide(policies, flight, needs, options)
        with watch("bookkeeping"):
            if record is not None:
                records.append(_thinned(record, flight, options.keep))
            flight = advance(flight, action, needs, options)
            over_B = is_over(flight, options)
            if bool(over_B.any()):
                landed.append(_land(flight, over_B))
                # What is about to be read again need not be carried along, except where drift compares with it.
                idle = not needs.drift and (every or bool(flight.stale_B[~over_B].all()))
                flight = (replace(flight, fields={}) if idle else flight).keep(~over_B)
                if progress is not None:
                    progress(len(landed[-1]["row"]))
                room = rows - len(flight)
                if len(waiting) and (options.refill or not len(flight)):
                    flight = flight.join(admit(job, waiting[:room], denoiser, options.seed))
                    waiting = waiting[room:]
    return _Lane(landed, records, forwards, useful)


def _queue(job: Job, mask_id: int) -> tuple[Tensor, Tensor]:
    """Rows by prompt length, then canvas length, so that neighbours in a batch need little padding; and those that
    have nothing to decode."""
    prompt_P = torch.tensor([len(p) for p in job.prompts], dtype=torch.int64)
    order = (prompt_P[job.prompt_R] * (job.shape[1] + 1) + job.length_R).argsort(stable=True)
    if job.canvas_RL is None:
        return order, order[:0]
    valid_RL = torch.arange(job.canvas_RL.shape[1]) < job.length_R.unsqueeze(1)
    open_R = ((job.canvas_RL.cpu() == mask_id) & valid_RL).any(1)[order]
    return order[open_R], order[~open_R]


def _decide(policies: list[Policy], flight: Flight, needs: Needs, options: Options) -> tuple[Action, Steps | None]:
    """What every row does, and its record. The learning policy runs once: one distribution draws and is recorded."""
    obs, noise = flight.observation(needs, flight.eligible_BL), Noise(flight.key_B, flight.step_B)
    if len(policies) == 1:
        distribution = policies[0].distribution(obs)
        action = _draw(distribution, obs.eligible_BL, noise, options)
        if not options.record:
            return action, None
        return action, Steps(flight.row_B, flight.step_B, obs, action, distribution.log_prob(action))
    shown, steered_B1 = obs, (flight.policy_B > 0).unsqueeze(1)
    if options.widen:
        shown = replace(obs, eligible_BL=torch.where(steered_B1, obs.masked_BL, obs.eligible_BL))
    learning = policies[0].distribution(shown) if options.record else None
    draws: list[tuple[Tensor, Action]] = []
    for number, policy in enumerate(policies):
        rows_b = (flight.policy_B == number).nonzero().squeeze(1)
        if len(rows_b) and number == 0 and learning is not None:
            draws.append((rows_b, _draw(learning, shown.eligible_BL, noise, options).rows(rows_b)))
        elif len(rows_b):
            part, own = obs.rows(rows_b), Noise(noise.key_B[rows_b], noise.step_B[rows_b])
            drawn = _draw(policy.distribution(part), part.eligible_BL, own, options)
            ordered = learning is None or drawn.rank_BL is not None
            draws.append((rows_b, drawn if ordered else _by_score(drawn, policy.score(part))))
    action = _merge(draws, obs.masked_BL)
    if learning is None:
        return action, None
    # What another policy committed counts as drawn.
    assert action.committed_BL is not None
    action = replace(action, drawn_BL=torch.where(steered_B1, action.committed_BL, action.drawn_BL))
    return action, Steps(flight.row_B, flight.step_B, shown, action, learning.log_prob(action))


def _thinned(record: Steps, flight: Flight, keep: float) -> Steps:
    """The record, each of its steps with probability ``keep``."""
    if keep >= 1:
        return record
    return record.pairs(Noise(flight.key_B, flight.step_B).uniform(_KEEP, 1).squeeze(1) < keep)


def _by_score(action: Action, score_BL: Tensor) -> Action:
    """An unordered rule's commits as if drawn one after the other, best first: what an ordered policy is steered to."""
    assert action.committed_BL is not None
    order_BL, _ = sort_eligible(score_BL, action.committed_BL)
    return replace(action, rank_BL=rank_of(order_BL).masked_fill(~action.committed_BL, -1))


def _merge(draws: list[tuple[Tensor, Action]], masked_BL: Tensor) -> Action:
    """One action out of those of different rows."""
    drawn_BL, committed_BL = torch.zeros_like(masked_BL), torch.zeros_like(masked_BL)
    rank_BL = torch.full_like(masked_BL, -1, dtype=torch.int64)
    for rows_b, part in draws:
        assert part.committed_BL is not None
        drawn_BL[rows_b], committed_BL[rows_b] = part.drawn_BL, part.committed_BL
        if part.rank_BL is not None:
            rank_BL[rows_b] = part.rank_BL
    return Action(drawn_BL, rank_BL, committed_BL)


def _draw(distribution: ActionDistribution, eligible_BL: Tensor, noise: Noise, options: Options) -> Action:
    action = distribution.mode() if options.choose == "mode" else distribution.sample(noise)
    return commit(distribution, action, eligible_BL, options.force)


def advance(flight: Flight, action: Action, needs: Needs, options: Options) -> Flight:
    """Commits, counts the step, moves on to the next block where this one is done."""
    commit_BL = action.committed_BL
    assert commit_BL is not None
    canvas_BL = torch.where(commit_BL, flight.fields["token_BL"], flight.ids_BT[:, flight.start :])
    masked_BL = flight.masked_BL & ~commit_BL
    changed_B = commit_BL.any(-1)
    in_block_B = flight.in_block_B + 1
    given_up_B = in_block_B >= flight.size_B if options.cap == "block" else torch.zeros_like(changed_B)
    block_B = open_block(masked_BL, flight.size_B, flight.block_B + given_up_B)
    next_B = block_B != flight.block_B
    # A new block without a changed canvas still needs its positions read.
    stale_B = flight.stale_B | changed_B | (next_B if needs.where == "eligible" else torch.zeros_like(next_B))
    return replace(
        flight,
        ids_BT=torch.cat([flight.ids_BT[:, : flight.start], canvas_BL], 1),
        masked_BL=masked_BL,
        order_BL=torch.where(commit_BL, flight.step_B.unsqueeze(1), flight.order_BL),
        step_B=flight.step_B + 1,
        block_B=block_B,
        in_block_B=in_block_B.masked_fill(next_B, 0),
        stale_B=stale_B,
    )


def is_over(flight: Flight, options: Options) -> Tensor:
    done_B = ~flight.masked_BL.any(-1) | (flight.step_B >= flight.length_B)
    return done_B | (flight.block_B * flight.size_B >= flight.length_B) if options.cap == "block" else done_B


def _land(flight: Flight, over_B: Tensor) -> dict[str, Tensor]:
    """The results of finished rows and nothing else: neither prompts nor fields outlive them."""
    valid_bL = flight.attend_BT[over_B, flight.start :]
    return {
        "row": flight.row_B[over_B],
        "canvas_RL": flight.ids_BT[over_B, flight.start :].masked_fill(~valid_bL, -1),
        "order_RL": flight.order_BL[over_B],
        "nfe_R": flight.step_B[over_B],
        "finished_R": ~flight.masked_BL[over_B].any(-1),
        "policy_R": flight.policy_B[over_B],
    }


def _collect(landed: list[dict[str, Tensor]], records: list[Steps], forwards: int, useful: int) -> Rollout:
    found = {name: torch.cat([part[name] for part in landed]) for name in landed[0]}
    place_R = found.pop("row").argsort()
    steps = None
    if records:
        steps = Steps(torch.cat([s.row_N for s in records]), torch.cat([s.step_N for s in records]),
                      Observation.concatenate([s.observation for s in records]), _join([s.action for s in records]),
                      torch.cat([s.log_prob_N for s in records]))  # fmt: skip
    found = {name: value[place_R] for name, value in found.items()}
    return Rollout(**found, forwards=forwards, useful=useful, steps=steps)


def _join(actions: list[Action]) -> Action:
    def cat(name: str) -> Tensor | None:
        parts = [getattr(a, name) for a in actions]
        return None if parts[0] is None else torch.cat(parts)

    drawn = cat("drawn_BL")
    assert drawn is not None
    return Action(drawn, cat("rank_BL"), cat("committed_BL"))
