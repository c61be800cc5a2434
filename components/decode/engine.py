"""THE decode loop: training, evaluation, serving and the parity tests all run it.

Per-row step counters; blocks in order; a finished row is never touched again. Every step with something eligible
costs one NFE. A row stops after as many steps as it began with masks (``step_limit="canvas"``). With paper A's parity
switch ``step_limit="block"`` a block ends after as many steps as it began with masks, and what is left stays masked.

Fast without changing a decision: finished rows leave and waiting rows take their places; a row whose canvas did not
change is not sent through a stateless denoiser again; the output head runs only at positions somebody reads; no Python
loop over rows; noise is a function of the row's address, not of the batch.

Where memory runs out, half of the rows in flight wait, and go on from where they are when others have finished.

That holds in float32 and float64. In bfloat16 a row's logits depend on the shapes of its forwards: two of 120 texts
changed with workers, rows in flight and tokens per forward. A rollout records the three.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Event

import torch
from torch import Tensor

from ..core import workers
from ..core.devices import give_back, ran_out
from ..core.errors import SettingsError
from ..core.timer import Timer
from ..core.types import Action, Needs, Rollout, Steps
from ..denoisers.protocol import Denoiser
from ..policies.binding import require_same_denoiser
from ..policies.protocol import Policy
from . import memory
from .act import decide, thin
from .batch import DecodeBatch, admit, advance, is_done, retire
from .job import DecodeOptions, Job
from .refresh import Facts, refresh, require_finite

# Positions in flight that are worth a worker: below that the workers wait for one another's Python.
WORKER_TOKENS = 512
DEFAULT = DecodeOptions()
log = logging.getLogger(__name__)


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
    waiting, whole = _queue(job)
    number, rows, tokens = _shares(denoiser, job, options, needs, len(waiting))
    retired, told = _retired(job, whole, denoiser, options.seed), Event()

    def worker(mine: Tensor, timer: Timer) -> _Share:
        with torch.no_grad():
            return _Worker(denoiser, many, job, options, needs, timer, progress, _Room(rows, tokens, told), mine).run()

    # Every worker has rows of all lengths, and the same ones each time, whichever worker is done first.
    done = workers.timed([partial(worker, waiting[i::number]) for i in range(number)], timer or Timer())
    return _collect(
        retired + [part for one in done for part in one.retired],
        [r for one in done for r in one.records],
        sum(one.forwards for one in done),
        sum(one.useful for one in done),
        (number, min(one.fit[0] for one in done), min(one.fit[1] for one in done)),
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
    if len({policy.needs.late for policy in policies}) > 1:
        raise SettingsError(
            "Only some policies of the job leave tokens out of their statistics. Decode them one after another."
        )
    if needs.answer and job.answers is None:
        raise SettingsError(
            "A policy needs the reference answers, and the job has none. Make the job with answers=True."
        )
    return needs | Needs(where="masked") if options.record and options.steer_all_masks else needs


@dataclass(frozen=True)
class _Share:
    """What one worker decoded, and what fitted it in the end."""

    retired: list[dict[str, Tensor]]
    records: list[Steps]
    forwards: int
    useful: int
    fit: tuple[int, int]


@dataclass
class _Room:
    """Rows in flight and sequence positions in a forward, of one worker. told: a shortage has been reported."""

    rows: int
    tokens: int
    told: Event

    def halve(self, held: int) -> Tensor:
        """Fits half of the rows that are held; their numbers, of those that stay."""
        self.rows, self.tokens = held // 2, max(1, self.tokens // 2)
        if not self.told.is_set():
            self.told.set()
            log.warning("Out of memory with %d rows in flight: going on with %d. Texts are the same.", held, self.rows)
        give_back()
        return torch.arange(self.rows)


@dataclass
class _Worker:
    """Decodes ``waiting`` rows of a job, as many at a time as there is room for."""

    denoiser: Denoiser
    policies: list[Policy]
    job: Job
    options: DecodeOptions
    needs: Needs
    timer: Timer
    progress: Callable[[int], None] | None
    room: _Room
    waiting: Tensor
    parked: list[DecodeBatch] = field(default_factory=list)

    def run(self) -> _Share:
        batch = self._admitted()
        retired: list[dict[str, Tensor]] = []
        records: list[Steps] = []
        forwards = useful = 0
        every = not (self.options.reuse and self.denoiser.stateless)
        facts: Facts | None = None
        while len(batch):
            # A stateful denoiser says something new every time.
            fresh = int(batch.stale_B.sum()) if every and self.denoiser.stateless else len(batch)
            seen = self._seen(batch, facts or Facts.of(batch, self.needs, every))
            if seen is None:
                facts = None
                stay = self.room.halve(len(batch)).to(batch.row_B.device)
                self.parked.append(batch.keep(torch.arange(len(stay), len(batch), device=stay.device)))
                batch = batch.keep(stay)
                continue
            batch, asked = seen
            forwards, useful = forwards + asked, useful + min(asked, fresh)
            with self.timer("policy"):
                action, record = self._decided(batch)
            with self.timer("bookkeeping"):
                if record is not None:
                    records.append(thin(record, batch, self.options.record_share))
                batch = advance(batch, action, self.needs, self.options)
                done_B = is_done(batch, self.options)
                facts = Facts.of(batch, self.needs, every, done_B)
                if any(facts.broken):
                    require_finite(batch, batch.fields, ago=1)
                if any(facts.done):
                    facts = None
                    retired.append(retire(batch, done_B))
                    if self.progress is not None:
                        self.progress(len(retired[-1]["row"]))
                    batch = self._refilled(batch, done_B, every)
        return _Share(retired, records, forwards, useful, (self.room.rows, self.room.tokens))

    def _admitted(self) -> DecodeBatch:
        rows, self.waiting = self.waiting[: self.room.rows], self.waiting[self.room.rows :]
        return admit(self.job, rows, self.denoiser, self.options.seed)

    def _seen(self, batch: DecodeBatch, facts: Facts) -> tuple[DecodeBatch, int] | None:
        """The batch as the denoiser sees it; None where memory ran out, with more than one row in flight."""
        try:
            return refresh(batch, self.denoiser, self.needs, self.timer, facts, self.room.tokens)
        except (RuntimeError, MemoryError) as error:
            if len(batch) < 2 or not ran_out(error):
                raise
        return None

    def _decided(self, batch: DecodeBatch) -> tuple[Action, Steps | None]:
        """Every row's action and record; of one half after the other where memory runs out."""
        try:
            return decide(self.policies, batch, self.needs, self.options)
        except (RuntimeError, MemoryError) as error:
            if len(batch) < 2 or not ran_out(error):
                raise
        self.room.halve(len(batch))
        row_B = torch.arange(len(batch), device=batch.row_B.device)
        parts = [self._decided(batch.keep(half)) for half in row_B.tensor_split(2)]
        records = [record for _, record in parts if record is not None]
        return Action.concatenate([action for action, _ in parts]), Steps.concatenate(records) if records else None

    def _refilled(self, batch: DecodeBatch, done_B: Tensor, every: bool) -> DecodeBatch:
        """The rows that go on, and those that take the places of the others."""
        # What is about to be read again need not be carried along, except where drift compares with it.
        idle = not self.needs.drift and (every or bool(batch.stale_B[~done_B].all()))
        batch = (replace(batch, fields={}) if idle else batch).keep(~done_B)
        if len(batch) and not self.options.refill:
            return batch
        while self.parked and len(batch) < self.room.rows:
            first = self.parked.pop(0)
            number_B = torch.arange(len(first), device=done_B.device)
            now, later = number_B.tensor_split([self.room.rows - len(batch)])
            batch = batch.join(first.keep(now))
            if len(later):
                self.parked.insert(0, first.keep(later))
        if len(self.waiting) and len(batch) < self.room.rows:
            room = self.room.rows - len(batch)
            batch = batch.join(admit(self.job, self.waiting[:room], self.denoiser, self.options.seed))
            self.waiting = self.waiting[room:]
        return batch


def _queue(job: Job) -> tuple[Tensor, Tensor]:
    """Rows by prompt length, then canvas length, so that neighbours in a batch need little padding; and those that
    have nothing to decode."""
    prompt_P = torch.tensor([len(p) for p in job.prompts], dtype=torch.int64)
    order = (prompt_P[job.prompt_R] * (job.shape[1] + 1) + job.length_R).argsort(stable=True)
    open_R = (job.masks_R > 0)[order]
    return order[open_R], order[~open_R]


@torch.no_grad()
def _retired(job: Job, whole: Tensor, denoiser: Denoiser, seed: int) -> list[dict[str, Tensor]]:
    """The results of rows that have nothing to decode."""
    return [retire(admit(job, whole, denoiser, seed), torch.ones_like(whole, dtype=torch.bool))] if len(whole) else []


def _collect(
    retired: list[dict[str, Tensor]], records: list[Steps], forwards: int, useful: int, shares: tuple[int, int, int]
) -> Rollout:
    """The rollout of all rows, in the job's order."""
    results = {name: torch.cat([part[name] for part in retired]) for name in retired[0]}
    order_R = results.pop("row").argsort()
    results = {name: value[order_R] for name, value in results.items()}
    steps = Steps.concatenate(records) if records else None
    return Rollout(**results, forwards=forwards, useful=useful, steps=steps, shares=shares)
