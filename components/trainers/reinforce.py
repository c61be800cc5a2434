"""Reinforcement of a policy over a frozen denoiser: the loop that paper A's GRPO and paper B's UPO share.

Per iteration: rollouts, scores, rewards, advantages, then ``num_epochs`` optimizer steps on the recorded (row, step)
pairs. The frozen model is never run in the update. What differs between the papers is in ``Objective`` and in the
policy's action distribution.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core import processes, workers
from ..core.rng import generator, seed_of
from ..core.timer import Timer
from ..core.types import Needs, Steps
from ..decode.engine import rollout
from ..decode.job import DecodeOptions
from ..decode.prompts import Prompts
from ..denoisers.protocol import Denoiser
from ..maths import objectives
from ..maths.divergence import Draw, divergence, entropy
from ..policies.protocol import Policy
from ..policies.store import LearnedPolicy
from .checkpoints import TrainState
from .clipping import clip_finite
from .experience import Experience
from .plan import Objective, Plan


@dataclass(frozen=True)
class Method:
    """The method of a reinforcement. reference: of the divergence. expert: draws ``plan.experts`` rows per group."""

    plan: Plan
    objective: Objective
    reference: Policy | None = None
    expert: Policy | None = None


@dataclass(frozen=True)
class Pairs:
    """(row, step) pairs with the surrogate's factors.

    old_N       log-probability at sampling time; of the mixture, where an expert draws some rows.
    weight_N    share of the pair in the mean over rows. steered_N: bool, drawn by the expert.
    """

    steps: Steps
    old_N: Tensor
    advantage_N: Tensor
    weight_N: Tensor
    steered_N: Tensor

    @staticmethod
    def of(experience: Experience, method: Method) -> Pairs:
        """All pairs of an iteration."""
        plan, objective, steps = method.plan, method.objective, experience.steps
        nfe_R, masks_R = experience.rollout.nfe_R, experience.job.masks_R
        weight_N = objectives.pair_weights(steps.row_N, nfe_R, masks_R, objective.weighting)
        steered_N = (experience.job.policy_R > 0)[steps.row_N]
        old_N = objectives.mixture_log_prob(steps.log_prob_N, steered_N, plan.group, plan.experts)
        advantage_N = experience.advantage_R[steps.row_N]
        return Pairs(steps, old_N, advantage_N, weight_N / objective.record_share * experience.share, steered_N)

    def take(self, index: Tensor) -> Pairs:
        columns = (self.old_N, self.advantage_N, self.weight_N, self.steered_N)
        return Pairs(self.steps.pairs(index), *(column[index] for column in columns))


def optimizer_for(policy: LearnedPolicy, plan: Plan) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        [p for p in policy.parameters() if p.requires_grad],
        lr=plan.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=plan.weight_decay,
    )


def collect(
    policy: LearnedPolicy, denoiser: Denoiser, prompts: Prompts, method: Method, number: int, timer: Timer
) -> Experience:
    """Rollouts, scores, rewards and advantages of iteration ``number``, which seeds every draw.

    They are those of this process's prompts (``has_prompts``). The inputs of the reference are recorded too.
    """
    plan, objective = method.plan, method.objective
    policies: list[Policy] = [policy] if method.expert is None else [policy, method.expert]
    needs = Needs() if method.reference is None else method.reference.needs
    source = generator(plan.seed, "reinforce", "prompts", number)
    drawn = torch.randperm(len(prompts), generator=source)[: plan.prompts].tolist()
    chosen = prompts.take(processes.shard(drawn))
    answers = needs.answer or any(p.needs.answer for p in policies)
    job = chosen.job(plan.block_length, plan.frontier, plan.group, plan.experts, plan.expert_block, answers)
    if objective.alphas:
        job = replace(job, alpha_R=_alphas(method, number, len(drawn))[job.prompt_R])
    with timer("rollout"):
        decoded = rollout(denoiser, policies, job, _options(method, needs, number))
    with timer("reward"):
        _, correct_R, dense_R = chosen.scores(job, decoded)
        signal_R = correct_R if objective.signal == "correct" else dense_R
        alpha = objective.alpha if job.alpha_R is None else job.alpha_R
        reward_R = objectives.REWARDS[objective.reward](signal_R, decoded.nfe_R.cpu(), job.masks_R, alpha)
        advantage_R = objectives.group_advantages(reward_R, job.prompt_R, objective.normalize_advantage)
    assert decoded.steps is not None
    share = len(chosen) / len(drawn)
    return Experience(job, decoded, decoded.steps, reward_R, correct_R, dense_R, advantage_R, number, share)


def has_prompts(prompts: Prompts, plan: Plan) -> bool:
    """Whether an iteration has a prompt for this process."""
    return processes.rank() < min(plan.prompts, len(prompts))


def _alphas(method: Method, number: int, count: int) -> Tensor:
    """(P,) the speed exponents of those of ``count`` groups that are this process's."""
    alphas = method.objective.alphas
    source = generator(method.plan.seed, "reinforce", "alpha", number)
    drawn = torch.randint(len(alphas), (count,), generator=source).tolist()
    return torch.tensor([alphas[i] for i in processes.shard(drawn)])


def _options(method: Method, needs: Needs, number: int) -> DecodeOptions:
    plan = method.plan
    return DecodeOptions(
        seed=seed_of(plan.seed, "reinforce", "rollout", number),
        force_commit=plan.force_commit,
        step_limit=plan.step_limit,
        record=True,
        needs=needs,
        record_share=method.objective.record_share,
        steer_all_masks=plan.experts > 0,
        rows=plan.rollout_rows,
    )


def update(
    policy: LearnedPolicy,
    optimizer: torch.optim.Optimizer,
    experience: Experience | None,
    method: Method,
    room: workers.Room | None = None,
) -> dict[str, float]:
    """Take ``num_epochs`` optimizer steps on the pairs of all processes; return the surrogate's figures.

    experience: None in a process without prompts. room: the pairs in a forward, where earlier updates had room for
    fewer than the objective's. SettingsError before a step on a loss or a gradient that is not finite.
    """
    room = room or workers.Room(method.objective.micro_batch)
    pairs = None if experience is None else Pairs.of(experience, method)
    weights = [p for p in policy.parameters() if p.requires_grad]
    where = "this iteration" if experience is None else f"iteration {experience.number}"
    totals: dict[str, float] = {}
    for epoch in range(method.objective.num_epochs):
        optimizer.zero_grad(set_to_none=True)
        sums = {"loss": 0.0, "kl": 0.0, "entropy": 0.0, "clipped": 0.0, "pairs": 0.0}
        for figures in () if pairs is None else _add_gradients(policy, pairs, method, weights, room):
            for name, value in figures.items():
                sums[name] += value
        processes.sum_gradients(weights)
        sums = processes.added(sums)
        count = max(sums["pairs"], 1)
        norm = clip_finite(policy, method.plan.clip_norm, sums["loss"], where)
        optimizer.step()
        if epoch == 0:
            totals["policy/gradient_norm"] = norm
            totals |= {"policy/entropy": sums["entropy"] / count, "policy/kl": sums["kl"] / count}
        totals |= {"policy/clipped": sums["clipped"] / count, "policy/loss": sums["loss"]}
    return totals


def _live(pairs: Pairs, objective: Objective) -> Tensor:
    """The pairs of the update: those with an advantage or, where the divergence has a weight, all."""
    live_N = torch.arange(len(pairs.steps.row_N))
    return live_N if objective.kl_coef > 0 else live_N[pairs.advantage_N != 0]


def _add_gradients(
    policy: LearnedPolicy, pairs: Pairs, method: Method, weights: list[torch.nn.Parameter], room: workers.Room
) -> list[dict[str, float]]:
    """Add the surrogate's gradient, over the live pairs, to the weights' own; return the figures of every piece."""
    live_N = _live(pairs, method.objective)
    return workers.add_gradients_by_piece(
        lambda piece_n: surrogate(policy, pairs.take(piece_n), method), live_N, weights, room
    )


def surrogate(policy: LearnedPolicy, pairs: Pairs, method: Method) -> tuple[Tensor, dict[str, float]]:
    """Minus the weighted sum over pairs of the clipped term, plus kl_coef x divergence; and its figures.

    With ratio 1, weighting "constant" and kl_coef 0 its mean gradient is that of minus the expected reward, times
    (1 - 1/G) because the baseline holds the row itself, over L. The rest is not the gradient of the reward:

    - weighting "row": (1 - 1/G) (grad E[R/T] - E[R] grad E[1/T]), short trajectories counting more per step;
    - beyond the first epoch: of the clipped ratio per step, not of the trajectory's;
    - the divergence: of the sum over visited states of P(state) divergence(state) / L with P(state) held fixed; of a
      coupled draw estimated without bias from its own recorded draws (``maths.divergence``), steered rows left out;
    - steered rows: of the expert's action times the policy's share of its mixture likelihood;
    - normalize_advantage: each group counts as if its rewards were as far apart as any other's.

    record_share changes no mean: a step that is stored counts for 1/record_share.
    """
    plan, objective, steps = method.plan, method.objective, pairs.steps
    distribution = policy.distribution(steps.observation)
    own_n = distribution.log_prob(steps.action)
    log_prob_n = objectives.mixture_log_prob(own_n, pairs.steered_N, plan.group, plan.experts)
    gain_n = objectives.clipped(log_prob_n, pairs.old_N, pairs.advantage_N, objective.clip_eps)
    loss = -(pairs.weight_N * gain_n).sum()
    apart_n = torch.zeros_like(gain_n)
    if method.reference is not None:
        learns = objective.kl_coef > 0
        with torch.set_grad_enabled(learns):
            target = method.reference.distribution(steps.observation)
            draw = Draw(steps.action, own_n, pairs.old_N, pairs.steered_N)
            apart_n = divergence(distribution, target, draw, objective.divergence, learns)
        if learns:
            loss = loss + objective.kl_coef * (pairs.weight_N * apart_n).sum()
    with torch.no_grad():
        ratio_n = (log_prob_n - pairs.old_N).exp()
        beyond = ((ratio_n - 1).abs() > objective.clip_eps).float().sum()
    return loss, {
        "loss": float(loss.detach()),
        "kl": float(apart_n.detach().sum()),
        "entropy": float(entropy(distribution, own_n).sum()),
        "clipped": float(beyond),
        "pairs": float(len(own_n)),
    }


def reinforce(
    policy: LearnedPolicy,
    optimizer: torch.optim.Optimizer,
    denoiser: Denoiser,
    prompts: Prompts,
    method: Method,
    state: TrainState = TrainState(),  # noqa: B008 (frozen)
) -> Iterator[tuple[int, dict[str, float]]]:
    """Train ``policy`` in place, one iteration per item: its number and figures.

    state: of a training that is resumed; only the iterations after it run.
    """
    plan, before, room = method.plan, state.before, workers.Room(method.objective.micro_batch)
    for number in range(state.iteration + 1, plan.iterations):
        timer = Timer()
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate_at(number)
        policy.eval()
        temperature = plan.temperature_at(number, before)
        with _sampling(policy, temperature):
            mine = has_prompts(prompts, plan)
            experience = collect(policy, denoiser, prompts, method, number, timer) if mine else None
            with timer("update"):
                learned = update(policy, optimizer, experience, method, room)
        times = {f"seconds/{name}": value for name, value in timer.seconds.items()}
        metrics = _metrics(experience)
        experience = None  # its steps need not lie beside the next ones'
        before = temperature, metrics["decode/entropy"]
        yield number, metrics | {"decode/temperature": temperature} | learned | times


def _metrics(experience: Experience | None) -> dict[str, float]:
    """The metrics over the rows of all processes."""
    if experience is None:
        return processes.averaged({}, {})
    metrics = experience.metrics
    return processes.averaged(metrics, experience.counts(metrics))


@contextmanager
def _sampling(policy: LearnedPolicy, temperature: float) -> Generator[None]:
    """Multiply the policy's temperature by this one inside the block. An error restores it too."""
    own = policy.temperature
    policy.temperature = own * temperature
    try:
        yield
    finally:
        policy.temperature = own
