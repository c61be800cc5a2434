"""THE decode loop: training, evaluation, serving and the parity tests all run it.

Per-row step counters; blocks in order; a finished row is never touched again. Every step with something eligible
costs one NFE. A row stops after as many steps as its canvas is long (``step_limit="canvas"``). With paper A's parity
switch ``step_limit="block"`` a block ends after as many steps as it is long, and what is left in it stays masked.

Fast without changing a decision: finished rows leave and waiting rows take their places; a row whose canvas did not
change is not sent through a stateless denoiser again; the output head runs only at positions somebody reads; no Python
loop over rows; noise is a function of the row's address, not of the batch.

That holds in float32 and float64. In bfloat16 a row's logits depend on the shapes of its forwards: two of 120 texts
changed with workers, rows in flight and tokens per forward. A rollout records the three.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from components.core import workers
from components.core.errors import SettingsError
from components.core.timer import Timer
from components.core.types import Needs, Rollout, Steps
from components.decode import memory
from components.decode.act import decide, thin
from components.decode.batch import admit, advance, is_done, refresh, retire
from components.decode.job import DecodeOptions, Job
from components.denoisers.protocol import Denoiser
from components.policies.binding import require_same_denoiser
from components.policies.protocol import Policy

# Positions in flight that are worth a worker: below that the workers wait for one another's Python.
WORKER_TOKENS = 512
DEFAULT = DecodeOptions()


def rollout(
    denoiser: Denoiser,
    policies: Policy | Sequence[Policy],
    job: Job,
    options: DecodeOptions = DEFAULT,
    timer: Timer | None = None,
    progress: Callable[[int], None] | None = None,
) -> Rollout:
    """Decodes every row of the job. ``policies[0]`` is the learning one; ``job.policy_R`` says who draws which row.

    progress is called with the number of rows that have just finished, from the worker that finished them.
    SettingsError if a policy reads hidden states of another dLLM.
    """
    many = list(policies) if isinstance(policies, Sequence) else [policies]
    for policy in many:
        require_same_denoiser(policy, denoiser)
    needs = _needs(many, job, options)
    if not len(job):
        none = torch.zeros(0, dtype=torch.int64)
        return Rollout(none.reshape(0, 0), none.reshape(0, 0), none, none.bool(), none, 0, 0)
    waiting, whole = _queue(job, denoiser.mask_id)
    number, rows, tokens = _shares(denoiser, job, options, needs, len(waiting))
    with torch.no_grad():
        retired = [retire(admit(job, whole, denoiser, options.seed), torch.ones_like(whole, dtype=torch.bool))]

    def worker(mine: Tensor, timer: Timer) -> _Share:
        with torch.no_grad():
            return _run(denoiser, many, job, mine, rows, tokens, options, needs, timer, progress)

    # Every worker has rows of all lengths, and the same ones each time, whichever worker is done first.
    work = [partial(worker, waiting[i::number]) for i in range(number)]
    done = workers.timed(work, timer or Timer())
    return _collect(
        retired + [part for one in done for part in one.retired],
        [r for one in done for r in one.records],
        sum(one.forwards for one in done),
        sum(one.useful for one in done),
        (number, rows, tokens),
    )


def _shares(denoiser: Denoiser, job: Job, options: DecodeOptions, needs: Needs, waiting: int) -> tuple[int, int, int]:
    """How many workers decode the job; rows in flight and positions in a forward, of each."""
    sizes = memory.count(job, denoiser, needs, options.record, options.record_share)
    budget = memory.budget(denoiser.device) if options.memory is None else options.memory
    whole, most = sum(job.shape), options.rows or waiting
    wanted = options.workers or workers.count(denoiser.device, min(most, waiting) * whole // WORKER_TOKENS)
    number = max(1, min(wanted, most, waiting, budget // (sizes.row + sizes.forward(whole))))
    rows = None if options.rows is None else -(-options.rows // number)
    return number, *memory.fit(sizes, whole, denoiser.device, budget // number, rows, options.tokens)


def _needs(policies: list[Policy], job: Job, options: DecodeOptions) -> Needs:
    needs = policies[0].needs | options.needs
    for policy in policies[1:]:
        needs = needs | policy.needs
    if needs.answer and job.answers is None:
        raise SettingsError(
            "a policy needs the reference answers, and the job has none; there would be nothing to "
            "compare with; make the job with answers=True"
        )
    return needs | Needs(where="masked") if options.record and options.steer_all_masks else needs


@dataclass(frozen=True)
class _Share:
    """What one worker decoded."""

    retired: list[dict[str, Tensor]]
    records: list[Steps]
    forwards: int
    useful: int


def _run(
    denoiser: Denoiser,
    policies: list[Policy],
    job: Job,
    waiting: Tensor,
    rows: int,
    tokens: int,
    options: DecodeOptions,
    needs: Needs,
    timer: Timer,
    progress: Callable[[int], None] | None,
) -> _Share:
    """Decodes the job's ``waiting`` rows, ``rows`` at a time."""
    batch, waiting = admit(job, waiting[:rows], denoiser, options.seed), waiting[rows:]
    retired: list[dict[str, Tensor]] = []
    records: list[Steps] = []
    forwards = useful = 0
    every = not (options.reuse and denoiser.stateless)
    while len(batch):
        # A stateful denoiser says something new every time.
        fresh = int(batch.stale_B.sum()) if every and denoiser.stateless else len(batch)
        batch, asked = refresh(batch, denoiser, needs, timer, every, tokens)
        forwards, useful = forwards + asked, useful + min(asked, fresh)
        with timer("policy"):
            action, record = decide(policies, batch, needs, options)
        with timer("bookkeeping"):
            if record is not None:
                records.append(thin(record, batch, options.record_share))
            batch = advance(batch, action, needs, options)
            done_B = is_done(batch, options)
            if bool(done_B.any()):
                retired.append(retire(batch, done_B))
                # What is about to be read again need not be carried along, except where drift compares with it.
                idle = not needs.drift and (every or bool(batch.stale_B[~done_B].all()))
                batch = (replace(batch, fields={}) if idle else batch).keep(~done_B)
                if progress is not None:
                    progress(len(retired[-1]["row"]))
                room = rows - len(batch)
                if len(waiting) and (options.refill or not len(batch)):
                    batch = batch.join(admit(job, waiting[:room], denoiser, options.seed))
                    waiting = waiting[room:]
    return _Share(retired, records, forwards, useful)


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


def _collect(
    retired: list[dict[str, Tensor]], records: list[Steps], forwards: int, useful: int, shares: tuple[int, int, int]
) -> Rollout:
    """The rollout of all rows, in the job's order."""
    results = {name: torch.cat([part[name] for part in retired]) for name in retired[0]}
    order_R = results.pop("row").argsort()
    results = {name: value[order_R] for name, value in results.items()}
    steps = Steps.concatenate(records) if records else None
    return Rollout(**results, forwards=forwards, useful=useful, steps=steps, shares=shares)
