"""Stage train: GRPO or UPO from the distilled policy, resumable to the bit.

Checkpoints lie in .checkpoints/<profile>/<identity>, which DVC does not know (it clears a stage's outputs before a
run); identity is the hash of settings and dependencies, code included, so that only the very same training goes on.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from components.core.errors import CheckpointError, DataError
from components.core.files import copy as copy_file
from components.core.files import read_lines, replace_whole
from components.settings import Decode, Domain, Train
from components.stages.common.alone import alone
from components.stages.common.progress import progress
from components.stages.common.runfile import RunRecord, code_of, describe_run, write_run
from components.stages.common.workspace import Workspace
from components.tracking.tracker import CompositeTracker, JsonlTracker, Tracker

if TYPE_CHECKING:
    import torch

    from components.policies.store import LearnedPolicy
    from components.trainers.checkpoints import TrainState


def train(workspace: Workspace, domain: Domain, decode: Decode, train: Train) -> dict[str, float]:
    """P/train/policy (the best by validation), P/train/metrics.jsonl, P/train/run.json with the MLflow run's id."""
    with alone(workspace, "train"), ExitStack() as ending:
        return _train(workspace, domain, decode, train, ending)


def _train(workspace: Workspace, domain: Domain, decode: Decode, train: Train, ending: ExitStack) -> dict[str, float]:
    """``ending``: gets what gives the MLflow run its final state, however the training ends."""
    from components.policies import store
    from components.stages.common.models import domain_prompts, open_cached
    from components.trainers.reinforce import optimizer_for, reinforce

    settings = {
        name: value.model_dump(mode="json") for name, value in dict(domain=domain, decode=decode, train=train).items()
    }
    inputs = [
        workspace.outputs / "data" / "domain",
        workspace.outputs / "pretrain" / domain.model,
        workspace.outputs / "distill" / "policy",
    ]
    begun = describe_run("train", workspace.profile, settings, [*inputs, *code_of("train")], workspace.root)
    kept = workspace.root / ".checkpoints" / workspace.profile / begun.identity
    saved, lines = kept / "state.safetensors", kept / "metrics.jsonl"

    denoiser, encoder = open_cached(workspace, domain.model, decode)
    policy = store.load(workspace.outputs / "distill" / "policy").to(denoiser.device)
    reference = reference_for(train, policy)
    add_alpha_input(policy, train)
    plan, objective = plan_of(train, decode)
    optimizer = optimizer_for(policy, plan)
    state = _resumed(kept, policy, optimizer)
    if state.iteration >= 0:
        print(f"train: resumes after iteration {state.iteration} of {plan.iterations}", flush=True)
    tracker = _tracker(workspace, lines, state, begun)
    ending.push(_final_state(tracker))
    if state.mlflow_run_id is None:
        state = replace(state, mlflow_run_id=tracker.run_id)
        tracker.params(settings)
        state.save(saved, policy, optimizer)  # from here on a killed run goes on in the same MLflow run

    validate = _validator(workspace, domain, decode, train, denoiser, encoder)
    prompts = domain_prompts(workspace, domain, encoder, ["train"])
    with progress("train", plan.iterations - state.iteration - 1) as tick:

        def after(number: int, metrics: dict[str, float]) -> None:
            nonlocal state
            last = number + 1 == plan.iterations
            if (number + 1) % train.validate_every == 0 or last:
                metrics = metrics | validate(policy)
                reward = metrics["tune/reward"]
                if state.best_reward is None or reward > state.best_reward:
                    weights = {n: t.detach().clone() for n, t in policy.state_dict().items()}
                    state = replace(state, best_reward=reward, best_weights=weights)
            tracker.log(metrics, number)
            if (number + 1) % train.save_every == 0 or last:
                seen = metrics["decode/temperature"], metrics["decode/entropy"]
                state = replace(state, iteration=number, before=seen)
                state.save(saved, policy, optimizer)
            tick(
                f"reward {metrics['reward/mean']:.3f} accuracy {metrics['reward/correct']:.3f} "
                f"NFE {metrics['decode/nfe']:.2f}"
            )

        reinforce(
            policy,
            denoiser,
            prompts,
            plan,
            objective,
            after,
            optimizer,
            state.iteration + 1,
            reference,
            expert_of(train),
            state.before,
        )
    policy.load_state_dict(dict(state.best_weights))
    store.save(policy, workspace.outputs / "train" / "policy")
    copy_file(lines, workspace.outputs / "train" / "metrics.jsonl")
    figures = validate(policy)
    trained = store.content_hash(workspace.outputs / "train" / "policy")
    record = begun.finished(figures, mlflow_run_id=tracker.run_id, policy_hash=trained)
    write_run(workspace.outputs / "train" / "run.json", record)
    tracker.finish("FINISHED")
    workspace.metrics("train", figures)
    shutil.rmtree(kept, ignore_errors=True)
    return figures


def _resumed(kept: Path, policy: LearnedPolicy, optimizer: torch.optim.Optimizer) -> TrainState:
    """The state in ``kept``, with policy and optimizer put in place; else that of a fresh training.

    A checkpoint that cannot be read is put aside and named. Without that every later run would end at it.
    """
    from components.trainers.checkpoints import TrainState, load

    saved, lines = kept / "state.safetensors", kept / "metrics.jsonl"
    if saved.exists():
        try:
            state = TrainState.read(saved)
            last = state.iteration
            logged = [record["step"] for record in read_lines(lines, needs=("step",))]
            if logged[: last + 1] != list(range(last + 1)):
                raise CheckpointError(f"{lines} lacks iterations before {last + 1}. Delete it.")
            return replace(state, best_weights=load(saved, policy, optimizer))
        except (CheckpointError, DataError) as error:
            aside = kept.with_name(f"{kept.name}.unreadable")
            replace_whole(kept, aside)
            print(f"train: {error} It is put aside as {aside}, and the training begins anew.", flush=True)
    return TrainState()


def _final_state(tracker: Tracker) -> Callable[..., None]:
    """For an ExitStack: FAILED after an error, KILLED after a signal; FINISHED is the training's own word."""

    def leave(kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is not None:
            with suppress(OSError):  # a full disk: the error that matters is the first one
                tracker.finish("FAILED" if issubclass(kind, Exception) else "KILLED")

    return leave


def plan_of(train: Train, decode: Decode):
    """The trainer's plan and objective from the settings."""
    from components.trainers.plan import Objective, Plan

    plan = Plan(
        train.iterations,
        train.prompts,
        train.group,
        train.learning_rate,
        train.seed,
        decode.block_length,
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
    )
    divergence = {} if train.divergence == "none" else {"divergence": train.divergence}
    goal = Objective(
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
    return plan, goal


def reference_for(train: Train, distilled):
    """The policy that the divergence is measured from: the distilled one as it is now, a rule, or None."""
    from components.stages.common.models import reference_of

    if train.divergence == "none":
        return None
    if train.reference == "distilled":
        return copy.deepcopy(distilled).requires_grad_(False)
    return reference_of(train.reference, train.reference_value)


def add_alpha_input(policy, train: Train) -> None:
    """One policy for several alphas reads which it is asked for; the distilled start does not change."""
    if train.alphas:
        policy.add_alpha_input(train.alphas)


def expert_of(train: Train):
    """The threshold rule that steers, or None."""
    from components.policies.heuristics import Threshold

    return Threshold(train.expert_threshold) if train.experts else None


def _tracker(workspace: Workspace, lines: Path, state: TrainState, begun: RunRecord) -> Tracker:
    from components.tracking import store as tracking_store
    from components.tracking.mlflow_tracker import MlflowTracker, run_tags
    from components.tracking.publish import experiment_name

    remote = MlflowTracker.start(
        tracking_store.tracking_uri(workspace.root),
        experiment_name(workspace.profile),
        f"train-{begun.identity[:8]}",
        state.mlflow_run_id,
        run_tags(begun.to_json()),
    )
    return CompositeTracker(JsonlTracker(lines, state.iteration), remote)


def _validator(workspace: Workspace, domain: Domain, decode: Decode, train: Train, denoiser, encoder):
    """``validate(policy)``: reward, accuracy and NFE on the tune split, decoded as the policy will be served; of one
    that is trained for several alphas the mean over them."""
    import torch

    from components.core.rng import seed_of
    from components.core.types import Rollout
    from components.decode.engine import rollout
    from components.decode.job import DecodeOptions, Job
    from components.stages.common.models import domain_prompts
    from components.trainers.rewards import REWARDS

    tune = domain_prompts(workspace, domain, encoder, ["tune"])
    jobs = [(a, tune.job(decode.block_length, alpha_P=torch.full((len(tune),), a))) for a in train.alphas]
    jobs = jobs or [(train.one_alpha, tune.job(decode.block_length))]
    options = DecodeOptions(seed=seed_of(train.seed, "tune"), choose=decode.choose, rows=train.rollout_rows)

    def validate(policy) -> dict[str, float]:
        figures = [_measured(alpha, job, rollout(denoiser, policy, job, options)) for alpha, job in jobs]
        return {name: sum(f[name] for f in figures) / len(figures) for name in figures[0]}

    def _measured(alpha: float, job: Job, decoded: Rollout) -> dict[str, float]:
        _, correct_R, dense_R = tune.scores(job, decoded)
        signal_R = correct_R if train.signal == "correct" else dense_R
        reward_R = REWARDS[train.reward](signal_R, decoded.nfe_R.cpu(), job.length_R, alpha)
        return {
            "tune/reward": float(reward_R.mean()),
            "tune/correct": float(correct_R.mean()),
            "tune/nfe": float(decoded.nfe_R.float().mean()),
        }

    return validate
