"""What a decoding step asks of the device: one wait, and no kernel twice where one would do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from components.bench.launches import launches
from components.bench.models import random_model, random_prompts
from components.commands.throughput import KERNELS
from components.core.errors import CheckpointError
from components.core.timer import Timer
from components.core.types import Action
from components.decode import act, readout, refresh
from components.decode.engine import rollout
from components.decode.job import DecodeOptions
from components.maths import coupling, distributions
from components.maths.accept_or_skip import AcceptOrSkip
from components.maths.coupled import CoupledPlackettLuce
from components.policies.confidence import ConfidencePolicy, Shape
from components.policies.coupled import CoupledPolicy, CoupledShape
from components.policies.heuristics import Quota
from components.policies.rules import heuristic
from components.settings import read
from components.stages.influence import fresh_policy

pytestmark = pytest.mark.e2e

torch.set_num_threads(1)
PROFILES = Path(__file__).parents[2] / "profiles"
STEP: Any = SimpleNamespace(nfe_R=torch.tensor([1]))  # what a decode of one step returns, as far as it is counted


class _There(torch.Tensor):
    """A tensor that names another device than its own."""

    device = SimpleNamespace(type="cuda")  # type: ignore[assignment]


@pytest.fixture
def device_like(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop as it runs on an accelerator."""
    monkeypatch.setattr(refresh, "reads_wait", lambda device: True)

    def commit(distribution: Any, action: Action, eligible_BL: torch.Tensor, force: bool) -> Action:
        there = replace(action, drawn_BL=action.drawn_BL.as_subclass(_There))
        done = distributions.commit(distribution, there, eligible_BL, force)
        assert done.committed_BL is not None
        return replace(action, committed_BL=done.committed_BL.as_subclass(torch.Tensor))

    monkeypatch.setattr(act, "commit", commit)


def waits(policy: Any, length: int, dtype: torch.dtype = torch.float32) -> tuple[float, int]:
    """All waits of a decode of three rows in one block, and its steps."""
    denoiser, encoder, task = random_model(length, width=32, layers=1, vocabulary=40)
    denoiser.model.to(dtype)
    job = random_prompts(task, encoder, 3).job(None)
    options = DecodeOptions(choose="mode", workers=1)
    found = launches(lambda timer: rollout(denoiser, policy, job, options, timer), denoiser.device)
    return found["waits_per_step"] * found["steps"], found["steps"]


@pytest.mark.usefixtures("device_like")
def test_a_step_waits_for_the_device_once() -> None:
    """Twice the steps cost their own waits alone; what the ends of rows cost is the same in both."""
    (few, short), (many, long) = waits(Quota("confidence", 1), 8), waits(Quota("confidence", 1), 16)
    assert (short, long) == (8, 16)
    assert (many - few) / (long - short) == 1


@pytest.mark.usefixtures("device_like")
def test_a_learned_policy_does_not_wait_either() -> None:
    torch.manual_seed(0)
    # One forced commit a step. A CPU alone asks whether an entropy needs its smallest terms (``readout``).
    policy = ConfidencePolicy(Shape(("log_odds", "margin"), width=8, heads=1, mlp_width=8, bias=-9.0)).eval()
    (few, short), (many, long) = waits(policy, 8), waits(policy, 16)
    assert long - short == 8 and (many - few) / (long - short) == 1


@pytest.mark.usefixtures("device_like")
def test_a_coupled_policy_waits_once_more_for_its_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many candidates it looks at. In float64 no entropy asks for its smallest terms, as a CPU alone does."""
    monkeypatch.setattr(coupling, "reads_wait", lambda device: True)
    torch.manual_seed(0)
    shape = CoupledShape(top_k=3, width=8, heads=1, mlp_width=8, pair_width=4, offsets=3, action="accept", tau=-99.0)
    policy = CoupledPolicy(shape).double().eval()
    (few, short), (many, long) = waits(policy, 8, torch.float64), waits(policy, 16, torch.float64)
    assert long - short == 8 and (many - few) / (long - short) == 2


@pytest.mark.usefixtures("device_like")
def test_the_kernels_of_a_step_are_those_of_the_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one row in blocks, between the ends of rows. The vocabulary has 16 of the readout's pieces; one of 126,464
    has 247."""
    monkeypatch.setattr(coupling, "reads_wait", lambda device: True)
    monkeypatch.setattr(readout, "chunk_bytes", lambda device: (2**29, 2**29))
    paper, coupled = (fresh_policy(read(PROFILES / f"{name}.yaml").policy, 32, 0) for name in ("gpu", "gpu-coupled"))
    assert isinstance(coupled, CoupledPolicy)
    coupled.tau.data.fill_(-99.0)  # one commit a step, by force
    options = DecodeOptions(choose="mode", workers=1)

    def kernels(policy: Any, length: int) -> float:
        denoiser, encoder, task = random_model(length, width=32, layers=1, vocabulary=8_192)
        job = random_prompts(task, encoder, 1).job(8)
        found = launches(lambda timer: rollout(denoiser, policy, job, options, timer), denoiser.device)
        assert found["steps"] == length
        return sum(count for name, count in found["kernels_per_step"].items() if name != "denoiser") * length

    policies = {"threshold:0.9": heuristic("threshold", 0.9), "paper A": paper, "coupled": coupled}
    counted = {name: (kernels(policy, 32) - kernels(policy, 16)) / 16 for name, policy in policies.items()}
    counted["coupled"] -= 2  # the host's: the probability of the one candidate that a step looks at
    assert counted == KERNELS


def kernels_of_a_walk(draw: CoupledPlackettLuce | AcceptOrSkip, monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(coupling, "reads_wait", lambda device: True)
    found = launches(lambda _: (draw.mode(), STEP)[1], torch.device("cpu"))
    assert found["waits_per_step"] == 2  # the walk's, and that for the number of steps
    return found["kernels_per_step"]["elsewhere"]


def test_a_coupled_walk_asks_an_accelerator_for_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its fields are read in one tensor; of ten picks more no operator is seen."""

    def kernels(length: int) -> float:
        flat_1L = torch.full((1, length), 9.0)
        shift_1LL, open_1L = torch.zeros(1, length, length), flat_1L > 0
        draw = CoupledPlackettLuce(flat_1L, flat_1L, shift_1LL, flat_1L / 10, open_1L, tau=torch.tensor(1.0))
        assert int(draw.mode().drawn_BL.sum()) == length
        return kernels_of_a_walk(draw, monkeypatch)

    assert kernels(14) == kernels(4) < 15


def test_a_mode_of_accept_or_skip_ends_at_the_first_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of 14 are taken; the candidates behind the first that is not would be skipped one by one. The probability of
    each is the host's own torch."""

    def kernels(length: int) -> float:
        flat_1L = torch.full((1, length), -9.0)
        flat_1L[0, :2] = 9.0
        shift_1LL, open_1L = torch.zeros(1, length, length), torch.ones(1, length, dtype=torch.bool)
        draw = AcceptOrSkip(flat_1L, torch.zeros_like(flat_1L), shift_1LL, torch.full_like(flat_1L, 0.1), open_1L)
        assert draw.mode().drawn_BL.nonzero()[:, 1].tolist() == [0, 1]
        return kernels_of_a_walk(draw, monkeypatch)

    assert kernels(14) == kernels(5)


@pytest.mark.usefixtures("device_like")
def test_what_is_not_finite_is_named_there_too() -> None:
    denoiser, encoder, task = random_model(8, width=32, layers=1, vocabulary=40)
    job = random_prompts(task, encoder, 2).job(None)
    denoiser.model.lm_head.weight.data[7] = torch.nan
    with pytest.raises(CheckpointError, match=r"row \d of the job, canvas position 0, step 0: .* \(confidence_BL\)"):
        rollout(denoiser, Quota("confidence", 1), job, DecodeOptions(choose="mode", workers=1), Timer())
