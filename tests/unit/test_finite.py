"""Numbers that are not numbers are found where they enter, with the row, round, tensor or file in the message; and what
is equal stays equal."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from components.core.errors import CheckpointError, DataError, SettingsError
from components.core.types import Canvas
from components.decode.engine import rollout
from components.decode.job import DecodeOptions, Job
from components.denoisers import embedded
from components.denoisers.formula import FormulaDenoiser
from components.export import NumpyPolicy, OnnxPolicy, export_policy
from components.export.actions import commit as commit_array
from components.maths.distributions import Bernoulli, Categorical, commit
from components.maths.objectives import REWARDS, group_advantages
from components.maths.plackett_luce import DPLS
from components.maths.walks import CoupledScores, ordered
from components.policies import store
from components.policies.confidence import ConfidencePolicy
from components.policies.coupled import CoupledPolicy, CoupledShape
from components.policies.heuristics import Threshold
from components.trainers.clipping import clip_finite
from components.trainers.distill import DistillPlan, imitate
from components.trainers.plan import Objective, Plan
from components.trainers.pretrain import Batch, Schedule, pretrain
from components.trainers.reinforce import Method, optimizer_for, reinforce
from tests.doubles import learner, snapshot
from tests.messages import has_remedy
from tests.toy_domain import KeyFirst

pytestmark = pytest.mark.e2e

torch.set_num_threads(1)

BAD = {"NaN": math.nan, "infinite": math.inf}
PLAN = Plan(iterations=1, prompts=6, group=4, learning_rate=1e-2, seed=0, block_length=None, warmup=1, temperature=2.0)


# --- logits and hidden states --------------------------------------------------------------------------------------


def plain(canvas: Canvas) -> Tensor:
    return torch.eye(6)[torch.arange(4) + 1].expand(len(canvas.ids_BT), 4, 6).clone()


def spoiled(value: float) -> FormulaDenoiser:
    """Fine but for position 2 behind prompts that begin with token 5."""

    def formula(canvas: Canvas) -> Tensor:
        logits_BLV = plain(canvas)
        logits_BLV[canvas.ids_BT[:, 0] == 5, 2, 3] = value
        return logits_BLV

    return FormulaDenoiser(formula, 6)


JOB = Job.of([torch.tensor([n]) for n in (1, 2, 5, 3)], 4, 4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_stop_with_row_and_position(value: float):
    with pytest.raises(CheckpointError, match=r"row 2 of the job, canvas position 2, step 0.*logits") as caught:
        rollout(spoiled(value), Threshold(0.9), JOB, DecodeOptions(workers=1))
    assert has_remedy(str(caught.value))


def test_a_token_that_is_ruled_out_by_minus_infinity_is_no_fault():
    assert bool(rollout(spoiled(-math.inf), Threshold(0.9), JOB).finished_R.all())


def test_a_position_where_every_token_is_forbidden_stops():
    denoiser = FormulaDenoiser(lambda canvas: torch.full((len(canvas.ids_BT), 4, 6), -math.inf), 6)
    with pytest.raises(CheckpointError, match="logits"):
        rollout(denoiser, Threshold(0.9), JOB)


def test_a_head_that_overflows_stops_a_decode():
    denoiser, encoder = embedded.build("llada", "abcdef", embedded.Shape(16, 1, 2, 24, 32), seed=0)
    denoiser.model.lm_head.weight.data *= 1e38
    with pytest.raises(CheckpointError, match="logits"):
        rollout(denoiser, Threshold(0.9), Job.of([encoder.prompt("abc")], 4, 4))


def test_hidden_states_that_are_not_finite_stop_only_a_policy_that_reads_them():
    class Half(FormulaDenoiser):
        def hidden(self, canvas: Canvas, state: object) -> tuple[Tensor, None]:
            states_BTD, _ = super().hidden(canvas, None)
            states_BTD[..., 0] = torch.nan
            return states_BTD, None

        def logits(self, hidden_ND: Tensor) -> Tensor:
            return hidden_ND.nan_to_num(0.0)

    denoiser = Half(plain, 6)
    assert bool(rollout(denoiser, learner(), JOB, DecodeOptions(choose="mode")).finished_R.all())
    with pytest.raises(CheckpointError, match="hidden states"):
        rollout(denoiser, learner(features=6), JOB, DecodeOptions(choose="mode"))


# --- training ------------------------------------------------------------------------------------------------------


def train(key_first: KeyFirst, policy: ConfidencePolicy) -> None:
    method, optimizer = Method(PLAN, Objective(signal="dense")), optimizer_for(policy, PLAN)
    for _ in reinforce(policy, optimizer, key_first.denoiser(), key_first.prompts(), method):
        pass


def test_a_gradient_that_is_not_finite_stops_the_round_before_the_step(key_first: KeyFirst):
    policy = learner()
    before = snapshot(policy)
    cast(Any, policy.time[0]).weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(SettingsError, match=r"iteration 0: .* gradient of time\.0\.weight") as caught:
        train(key_first, policy)
    assert has_remedy(str(caught.value))
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())


def test_a_reward_that_is_not_a_number_stops_the_round_before_the_step(
    key_first: KeyFirst, monkeypatch: pytest.MonkeyPatch
):
    policy = learner()
    before = snapshot(policy)
    monkeypatch.setitem(
        REWARDS,
        "multiplicative",
        lambda score_R, nfe_R, length_R, alpha: score_R * math.nan,
    )
    with pytest.raises(SettingsError, match="iteration 0: the loss is nan"):
        train(key_first, policy)
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_step_where_its_gradients_are_finite(loss: float):
    model = torch.nn.Linear(2, 1)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 5.0)
    with pytest.raises(SettingsError, match=f"iteration 3: the loss is {loss}.* finite one by one") as caught:
        clip_finite(model, 1.0, loss, "iteration 3")
    assert has_remedy(str(caught.value))
    assert all(bool((p.grad == 5.0).all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_round_leaves_the_policy_at_its_own_temperature(
    key_first: KeyFirst, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
):
    policy = learner()
    policy.temperature = 0.7

    def fail(*arguments: object) -> None:
        assert policy.temperature == pytest.approx(1.4)  # the round's
        raise error

    monkeypatch.setattr("components.trainers.reinforce.update", fail)
    with pytest.raises(error):
        train(key_first, policy)
    assert policy.temperature == 0.7


def test_distillation_stops_before_a_step_that_is_not_finite(key_first: KeyFirst):
    policy = learner()
    cast(Any, policy.time[0]).weight.register_hook(lambda gradient: gradient * math.nan)
    before = snapshot(policy)
    plan = DistillPlan(iterations=1, prompts=4, micro_batch=64, learning_rate=0.1, block_length=None, seed=0)
    with pytest.raises(SettingsError, match="iteration 0 of distillation"):
        imitate(policy, Threshold(0.9), key_first.denoiser(), key_first.prompts(), plan, lambda number, metrics: None)
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())


def test_pretraining_stops_before_a_step_that_is_not_finite():
    denoiser, encoder = embedded.build("llada", "abcdef", embedded.Shape(16, 1, 2, 24, 32), seed=0)
    denoiser.model.requires_grad_(True).lm_head.weight.register_hook(lambda gradient: gradient * math.nan)
    before = snapshot(denoiser.model)
    prompt_BP = encoder.prompt("ab").expand(2, -1)
    batch = Batch(prompt_BP, torch.ones_like(prompt_BP, dtype=torch.bool), encoder.answer("abc", 4).expand(2, -1), 1.0)
    with pytest.raises(SettingsError, match=r"step 0 of pretraining: .* gradient of lm_head\.weight"):
        pretrain(denoiser, lambda step: [batch], Schedule(2, 0.1, 0, 0), lambda step, metrics: None)
    assert all(torch.equal(before[name], value) for name, value in denoiser.model.state_dict().items())


# --- policies that are loaded --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_a_policy_folder_with_a_weight_that_is_not_finite_is_refused(value: float, tmp_path: Path):
    store.save(learner(), tmp_path)
    path = tmp_path / "policy.safetensors"
    weights = load_file(path)
    weights["block.up.weight"][3, 2] = value
    save_file(weights, path)
    with pytest.raises(CheckpointError, match=r"policy\.safetensors: block\.up\.weight") as caught:
        store.load(tmp_path)
    assert has_remedy(str(caught.value))


def test_a_policy_folder_with_whole_numbers_for_weights_is_refused(tmp_path: Path):
    store.save(learner(), tmp_path)
    path = tmp_path / "policy.safetensors"
    weights = load_file(path)
    save_file(weights | {"block.up.weight": weights["block.up.weight"].to(torch.int8)}, path)
    with pytest.raises(CheckpointError, match=r"policy\.safetensors: block\.up\.weight \(torch\.int8\)"):
        store.load(tmp_path)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole file; an export takes seconds."""
    path = tmp_path_factory.mktemp("exported") / "policy.onnx"
    export_policy(learner(features=8), path, {})
    return path


@pytest.mark.parametrize("opened", [OnnxPolicy, NumpyPolicy])
@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_an_onnx_file_with_a_weight_that_is_not_finite_is_refused_wherever_it_is(
    opened: Callable[[Path], object], value: float, exported: Path, tmp_path: Path
):
    path = Path(shutil.copy(exported, tmp_path))
    opened(path)
    model = onnx.load(path)
    floats = [w for w in model.graph.initializer if w.data_type == onnx.TensorProto.FLOAT and len(w.dims)]
    assert len(floats) > 10
    for weight in floats:
        whole = onnx.numpy_helper.to_array(weight)
        bad = whole.copy()
        bad.flat[-1] = value
        weight.CopyFrom(onnx.numpy_helper.from_array(bad, weight.name))
        onnx.save(model, path)
        with pytest.raises(CheckpointError, match=r"policy\.onnx") as caught:
            opened(path)
        assert has_remedy(str(caught.value)), weight.name
        weight.CopyFrom(onnx.numpy_helper.from_array(whole, weight.name))


@pytest.mark.parametrize("action", ["coupled", "accept"])
def test_a_row_of_a_table_of_positions_or_distances_that_is_not_finite_is_refused(action: str, tmp_path: Path):
    """A short example would not reach it."""
    path = tmp_path / "policy.onnx"
    sizes: dict[str, Any] = {"positions": 12, "offsets": 4}
    shape = CoupledShape(top_k=2, width=8, heads=2, mlp_width=8, blocks=1, pair_width=8, action=action, **sizes)
    export_policy(CoupledPolicy(shape).eval(), path, {})
    NumpyPolicy(path)
    model = onnx.load(path)
    tables = [w for w in model.graph.initializer if len(w.dims) == 2 and w.dims[0] in (12, 9)]
    assert sorted(w.dims[0] for w in tables) == [9, 12, 12]  # positions are read by both networks
    for weight in tables:
        whole = onnx.numpy_helper.to_array(weight)
        never = {4} if len(whole) == 9 else set[int]()  # the distance of a position from itself
        for row in set(range(len(whole))) - never:
            bad = whole.copy()
            bad[row] = np.nan
            weight.CopyFrom(onnx.numpy_helper.from_array(bad, weight.name))
            onnx.save(model, path)
            with pytest.raises(CheckpointError, match="NaN or infinite"):
                NumpyPolicy(path)
        weight.CopyFrom(onnx.numpy_helper.from_array(whole, weight.name))


def test_a_table_that_is_longer_than_any_example_is_read_from_the_file(tmp_path: Path):
    path = tmp_path / "policy.onnx"
    sizes: dict[str, Any] = {"positions": 600, "offsets": 1}
    shape = CoupledShape(top_k=2, width=8, heads=2, mlp_width=8, blocks=1, pair_width=8, **sizes)
    export_policy(CoupledPolicy(shape).eval(), path, {})
    NumpyPolicy(path)
    model = onnx.load(path)
    tables = [w for w in model.graph.initializer if list(w.dims) == [600, 8]]
    assert tables
    for weight in tables:
        whole = onnx.numpy_helper.to_array(weight)
        bad = whole.copy()
        bad[-1, 0] = np.nan
        weight.CopyFrom(onnx.numpy_helper.from_array(bad, weight.name))
        onnx.save(model, path)
        with pytest.raises(CheckpointError, match=f"{weight.name} is NaN or infinite") as caught:
            NumpyPolicy(path)
        assert has_remedy(str(caught.value))
        weight.CopyFrom(onnx.numpy_helper.from_array(whole, weight.name))


@pytest.mark.parametrize("name", ["log_odds_BL", "entropy_BL", "margin_BL", "features_BTD"])
def test_an_exported_policy_refuses_an_observation_with_nan_and_names_the_row(name: str, tmp_path: Path):
    path = tmp_path / "policy.onnx"
    export_policy(learner(features=8), path, {})
    policy, statistics = NumpyPolicy(path), ("log_odds_BL", "entropy_BL", "margin_BL")
    fields = {statistic: np.ones((3, 4), np.float32) for statistic in statistics}
    fields |= {"masked_BL": np.ones((3, 4), np.bool_), "features_BTD": np.ones((3, 4, 8), np.float32)}
    fields |= {"step_B": np.zeros(3, np.int64), "length_B": np.full(3, 4, np.int64)}
    assert policy.choose(fields).any(-1).all()
    fields[name] = fields[name].copy()
    fields[name][1].flat[-1] = np.nan
    with pytest.raises(DataError, match=f"{name} is NaN in row 1") as caught:
        policy.choose(fields)
    assert has_remedy(str(caught.value))


# --- force ---------------------------------------------------------------------------------------------------------


ELIGIBLE_BL = np.array([[False, True, True, False], [False, False, False, False]])


@pytest.mark.parametrize("kind", ["bernoulli", "categorical", "dpls"])
@pytest.mark.parametrize("sampled", [False, True])
def test_force_commits_even_where_utilities_are_not_numbers(kind: str, sampled: bool):
    utilities_BL = np.full((2, 4), np.nan, np.float32)
    action = {"kind": kind, "temperature": 1.0, "scale": 1.0}
    uniform = (lambda stream, length: np.full((2, length), 0.5)) if sampled else None
    scores = {"utilities_BL": utilities_BL, "eligible_BL": ELIGIBLE_BL}
    committed_BL = commit_array(action, scores, uniform, force=True)
    assert committed_BL.any(-1).tolist() == [True, False]
    assert not (committed_BL & ~ELIGIBLE_BL).any()


@pytest.mark.parametrize("kind", [Bernoulli, Categorical, DPLS])
def test_force_commits_in_the_loop_too(kind: type):
    eligible_BL = torch.from_numpy(ELIGIBLE_BL)
    distribution = kind(torch.full((2, 4), torch.nan), eligible_BL)
    action = commit(distribution, distribution.mode(), eligible_BL, force=True)
    assert action.committed_BL is not None
    assert action.committed_BL.any(-1).tolist() == [True, False]


def test_the_coupled_draw_takes_one_even_where_scores_are_not_numbers():
    bad_BL = np.full((1, 3), np.nan, np.float32)
    zeros = np.zeros((1, 3, 3), np.float32)
    eligible_BL = np.array([[False, True, True]])
    taken_BL = ordered(CoupledScores(bad_BL, bad_BL, zeros, bad_BL, eligible_BL), None) >= 0
    assert (taken_BL & eligible_BL).any()


# --- equal rewards -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_std", [False, True])
@pytest.mark.parametrize("reward", [0.1, 0.7, 1 / 3, (13 / 16) ** 3])
@pytest.mark.parametrize("members", [3, 5, 6, 7, 8])
def test_equal_rewards_give_an_advantage_of_exactly_zero(reward: float, members: int, by_std: bool):
    reward_R = torch.cat([torch.full((members,), reward), torch.linspace(0, 1, members)])
    group_R = torch.arange(2).repeat_interleave(members)
    advantage_R = group_advantages(reward_R, group_R, by_std)
    assert torch.equal(advantage_R[:members], torch.zeros(members))
    assert bool((advantage_R[members:] != 0).any())


def test_equal_rewards_are_no_mixed_group_and_move_nothing(key_first: KeyFirst, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(REWARDS, "multiplicative", lambda score_R, *rest: torch.full_like(score_R, 0.7))
    policy, plan = learner(), replace(PLAN, group=5)
    before, method = snapshot(policy), Method(plan, Objective())
    optimizer = optimizer_for(policy, plan)
    ((_, seen),) = reinforce(policy, optimizer, key_first.denoiser(), key_first.prompts(), method)
    assert seen["reward/mixed_groups"] == 0
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())


# --- what bfloat16 depends on --------------------------------------------------------------------------------------


def test_a_rollout_and_a_result_record_how_rows_were_batched(key_first: KeyFirst):
    from components.evaluation.evaluate import Candidate, Scope, evaluate

    denoiser, job = key_first.denoiser(), key_first.prompts().job(None)
    done = rollout(denoiser, Threshold(0.9), job, DecodeOptions(workers=2, rows=6, tokens=24))
    assert done.shares == (2, 3, 24)
    result = evaluate(
        denoiser, Candidate("threshold", "0.9", Threshold(0.9), None), key_first.prompts(), [0], Scope("t", "d", "test")
    )
    assert result.workers >= 1 and result.rows_in_flight >= 1 and result.tokens_per_forward >= 6
    assert {"workers", "rows_in_flight", "tokens_per_forward"} <= set(result.row())
