"""Stage train: GRPO or UPO from the distilled policy, resumable to the bit.

Checkpoints lie in .checkpoints/<profile>/<identity>, outside the stage's outputs, which DVC clears before a run. The
identity is the hash of settings and dependencies, code included: a training resumes only as the very same one.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import processes
from ..core.files import copy as copy_file
from ..settings import Decode, Domain, Train
from ..tracking.tracker import CompositeTracker, JsonlTracker, Tracker
from .common.lock import stage_lock
from .common.progress import progress
from .common.runfile import RunRecord, code_of, describe_run, write_run
from .common.workspace import Workspace

if TYPE_CHECKING:
    import torch

    from ..decode.prompts import Prompts
    from ..denoisers import Denoiser
    from ..policies.protocol import Policy
    from ..policies.store import LearnedPolicy
    from ..trainers.checkpoints import TrainState
    from ..trainers.plan import Objective, Plan


def train(workspace: Workspace, domain: Domain, decode: Decode, train: Train) -> dict[str, float]:
    """P/train/policy (the best by validation), P/train/metrics.jsonl, P/train/run.json with the MLflow run's id."""
    with ExitStack() as ending, processes.joined():
        if processes.rank() == 0:
            ending.enter_context(stage_lock(workspace, "train"))
        return _train(workspace, domain, decode, train, ending)


def _train(workspace: Workspace, domain: Domain, decode: Decode, train: Train, ending: ExitStack) -> dict[str, float]:
    """Train. ``ending`` receives the callback that gives the MLflow run its final state."""
    from ..policies import store
    from ..trainers.checkpoints import resumed
    from ..trainers.reinforce import Method, optimizer_for, reinforce
    from .common.models import domain_prompts, open_cached

    begun = _describe(workspace, domain, decode, train)
    kept = workspace.root / ".checkpoints" / workspace.profile / begun.identity
    denoiser, encoder = open_cached(workspace, domain.model, decode)
    policy = store.load(workspace.outputs / "distill" / "policy").to(denoiser.device)
    plan, objective = plan_of(train, decode)
    method = Method(plan, objective, reference_for(train, policy), expert_of(train))
    add_alpha_input(policy, train)
    optimizer = optimizer_for(policy, plan)
    with processes.main_first():
        state = resumed(kept, policy, optimizer)
    processes.require_same([begun.identity, state.iteration], "settings, inputs, code or checkpoint")
    main = processes.rank() == 0
    tracker = _tracker(workspace, kept / "metrics.jsonl", state, begun) if main else CompositeTracker()
    ending.push(_final_state(tracker))
    tune = domain_prompts(workspace, domain, encoder, ["tune"])
    validate = partial(_validated, denoiser=denoiser, tune=tune, decode=decode, train=train)
    training = _Training(policy, optimizer, state, kept / "state.safetensors", tracker, validate)
    training.begin(begun.settings)
    prompts = domain_prompts(workspace, domain, encoder, ["train"])
    with progress("train", plan.iterations - state.iteration - 1, main) as tick:
        for number, metrics in reinforce(policy, optimizer, denoiser, prompts, method, state):
            training.after(number, metrics, train)
            reward, correct, nfe = (metrics[name] for name in ("reward/mean", "reward/correct", "decode/nfe"))
            tick(f"reward {reward:.3f} accuracy {correct:.3f} NFE {nfe:.2f}")
    policy.load_state_dict(dict(training.state.best_weights))
    figures = validate(policy)
    if not main:
        return {}
    _write(workspace, policy, kept / "metrics.jsonl", begun.finished(figures, mlflow_run_id=tracker.run_id))
    tracker.finish("FINISHED")
    workspace.metrics("train", figures)
    shutil.rmtree(kept, ignore_errors=True)
    return figures


@dataclass
class _Training:
    """A running training. state: its progress, as stored in the file ``saved``."""

    policy: LearnedPolicy
    optimizer: torch.optim.Optimizer
    state: TrainState
    saved: Path
    tracker: Tracker
    validate: Callable[[LearnedPolicy], dict[str, float]]

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Save a fresh state, so that a killed training resumes in the same MLflow run; report a resumed one."""
        if self.state.mlflow_run_id is None:
            self.state = replace(self.state, mlflow_run_id=self.tracker.run_id)
            self.tracker.params(settings)
            self._save()
        if processes.rank() == 0 and self.state.iteration >= 0:
            iterations = settings["train"]["iterations"]
            print(f"train: resumes after iteration {self.state.iteration} of {iterations}", flush=True)

    def after(self, number: int, metrics: dict[str, float], train: Train) -> None:
        """Validate, log and save, as often as the settings ask for."""
        last = number + 1 == train.iterations
        if (number + 1) % train.validate_every == 0 or last:
            metrics = metrics | self.validate(self.policy)
            reward = metrics["tune/reward"]
            if self.state.best_reward is None or reward > self.state.best_reward:
                weights = {n: t.detach().clone() for n, t in self.policy.state_dict().items()}
                self.state = replace(self.state, best_reward=reward, best_weights=weights)
        self.tracker.log(metrics, number)
        if (number + 1) % train.save_every == 0 or last:
            before = metrics["decode/temperature"], metrics["decode/entropy"]
            self.state = replace(self.state, iteration=number, before=before)
            self._save()

    def _save(self) -> None:
        if processes.rank() == 0:
            self.state.save(self.saved, self.policy, self.optimizer)


def _describe(workspace: Workspace, domain: Domain, decode: Decode, train: Train) -> RunRecord:
    """The run's record, identified by settings, inputs and code."""
    sections = {"domain": domain, "decode": decode, "train": train}
    settings = {name: section.model_dump(mode="json") for name, section in sections.items()}
    inputs = [
        workspace.outputs / "data" / "domain",
        workspace.outputs / "pretrain" / domain.model,
        workspace.outputs / "distill" / "policy",
    ]
    return describe_run("train", workspace.profile, settings, [*inputs, *code_of("train")], workspace.root)


def _write(workspace: Workspace, policy: LearnedPolicy, lines: Path, record: RunRecord) -> None:
    """P/train: the policy, its curve, and run.json."""
    from ..policies import store

    folder = workspace.outputs / "train"
    store.save(policy, folder / "policy")
    copy_file(lines, folder / "metrics.jsonl")
    write_run(folder / "run.json", replace(record, policy_hash=store.content_hash(folder / "policy")))


def _final_state(tracker: Tracker) -> Callable[..., None]:
    """Exit callback: FAILED after an error, KILLED after a signal. The training itself sets FINISHED."""

    def leave(kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is not None:
            with suppress(OSError):  # a full disk: the error that matters is the first one
                tracker.finish("FAILED" if issubclass(kind, Exception) else "KILLED")

    return leave


def plan_of(train: Train, decode: Decode) -> tuple[Plan, Objective]:
    """The trainer's plan and objective from the settings."""
    from ..trainers.plan import Objective, Plan

    first = train.iterations, train.prompts, train.group, train.learning_rate, train.seed, decode.block_length
    plan = Plan(
        *first,
        experts=train.experts,
        expert_block=train.expert_block,
        warmup=train.warmup,
        min_lr_ratio=train.min_lr_ratio,
        weight_decay=train.weight_decay,
        clip_norm=train.clip_norm,
        force_commit=train.force_commit,
        step_limit=train.step_limit,
        rollout_rows=train.rollout_rows,
        temperature=train.temperature,
        anneal=train.anneal,
        entropy=train.entropy,
        frontier=decode.frontier,
    )
    divergence = {} if train.divergence == "none" else {"divergence": train.divergence}
    objective = Objective(
        alpha=train.one_alpha,
        alphas=train.alphas,
        reward=train.reward,
        signal=train.signal,
        clip_eps=train.clip_eps,
        num_epochs=train.num_epochs,
        weighting=train.weighting,
        normalize_advantage=train.normalize_advantage,
        kl_coef=train.kl_coef,
        micro_batch=train.micro_batch,
        record_share=train.record_share,
        **divergence,
    )
    return plan, objective


def reference_for(train: Train, distilled: LearnedPolicy) -> Policy | None:
    """The reference policy of the divergence: a copy of the distilled one, a rule, or None."""
    from .common.models import reference_of

    if train.divergence == "none":
        return None
    if train.reference == "distilled":
        return copy.deepcopy(distilled).requires_grad_(False)
    return reference_of(train.reference, train.reference_value)


def add_alpha_input(policy: LearnedPolicy, train: Train) -> None:
    """Add alpha as an input to a policy for several alphas; its decisions do not change."""
    from ..policies.feature import FeaturePolicy

    if train.alphas:
        assert not isinstance(policy, FeaturePolicy)  # the settings refuse it: one position per step has no speed
        policy.add_alpha_input(train.alphas)


def expert_of(train: Train) -> Policy | None:
    """The threshold rule that steers some rollouts, or None."""
    from ..policies.heuristics import Threshold

    return Threshold(train.expert_threshold) if train.experts else None


def _tracker(workspace: Workspace, lines: Path, state: TrainState, begun: RunRecord) -> Tracker:
    from ..tracking import store as tracking_store
    from ..tracking.mlflow_tracker import MlflowTracker, run_name, run_tags
    from ..tracking.publish import experiment_name

    remote = MlflowTracker.start(
        tracking_store.tracking_uri(workspace.root),
        experiment_name(workspace.profile),
        run_name(workspace.profile, begun.settings),
        state.mlflow_run_id,
        run_tags(begun.to_json()),
    )
    return CompositeTracker(JsonlTracker(lines, state.iteration), remote)


def _validated(
    policy: LearnedPolicy, denoiser: Denoiser, tune: Prompts, decode: Decode, train: Train
) -> dict[str, float]:
    """Reward, accuracy and NFE on the tune split, decoded as the policy will be served.

    Of a policy that is trained for several alphas: the mean over them.
    """
    import torch

    from ..core.rng import seed_of
    from ..decode.engine import rollout
    from ..decode.job import DecodeOptions
    from ..maths.objectives import REWARDS

    tune = tune.take(processes.shard(range(len(tune))))
    options = DecodeOptions(seed=seed_of(train.seed, "tune"), choose=decode.choose, rows=train.rollout_rows)
    figures: list[dict[str, float]] = []
    for alpha in (train.alphas or (train.one_alpha,)) if len(tune) else ():
        job = tune.job(decode.block_length, decode.frontier)
        if train.alphas:
            job = replace(job, alpha_R=torch.full((len(job),), alpha))
        decoded = rollout(denoiser, policy, job, options)
        _, correct_R, dense_R = tune.scores(job, decoded)
        signal_R = correct_R if train.signal == "correct" else dense_R
        reward_R = REWARDS[train.reward](signal_R, decoded.nfe_R.cpu(), job.masks_R, alpha)
        means = (float(x.mean()) for x in (reward_R, correct_R, decoded.nfe_R.float()))
        figures.append(dict(zip(("tune/reward", "tune/correct", "tune/nfe"), means, strict=True)))
    means = {name: sum(f[name] for f in figures) / len(figures) for name in (figures[0] if figures else ())}
    return processes.averaged(means, dict.fromkeys(means, len(tune)))
