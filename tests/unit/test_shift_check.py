"""`unmask doctor`'s line on pair shifts: the learned ones of the released policy beside those of its dLLM."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from components.commands import doctor, shift_check
from components.core.types import Observation
from components.decode import dependence
from components.export import OnnxPolicy
from components.maths.coupling import Coupled
from components.maths.distributions import ActionDistribution
from tests.messages import has_remedy


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The shifts of the policy, batch by batch, as it gives them; and few puzzles."""
    found: list[Tensor] = []
    real = OnnxPolicy.distribution

    def watched(self: OnnxPolicy, obs: Observation) -> ActionDistribution:
        distribution = real(self, obs)
        assert isinstance(distribution, Coupled)
        found.append(distribution.shift_BLL)
        return distribution

    monkeypatch.setattr(OnnxPolicy, "distribution", watched)
    monkeypatch.setattr(shift_check, "PUZZLES", 3)
    return found


def test_the_figures_are_those_of_a_direct_computation() -> None:
    """Numbers by numpy: the correlation's definition, and Bernoulli divergences pair by pair."""
    now, learned, exact = np.random.default_rng(0).normal(size=(3, 500)) + np.array([[0.0], [0.5], [0.5]])
    found = shift_check.fitted(7, torch.tensor(np.stack([now, learned, exact])))
    centered = learned - learned.mean(), exact - exact.mean()
    correlation = (centered[0] * centered[1]).sum() / np.sqrt((centered[0] ** 2).sum() * (centered[1] ** 2).sum())

    def divergence(shift: np.ndarray) -> float:
        p, q = 1 / (1 + np.exp(-now - exact)), 1 / (1 + np.exp(-now - shift))
        return float((p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum())

    assert (found.states, found.pairs) == (7, 500)
    assert found.correlation == pytest.approx(correlation, abs=1e-12)
    assert found.unexplained == pytest.approx(divergence(learned) / divergence(0 * now), rel=1e-9)


def test_a_dllm_that_moves_as_the_policy_expects_leaves_nothing_unexplained(
    learned: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dependence, "exact_shifts", lambda *_: learned[-1])
    found = shift_check.shift_fit()
    assert found.correlation == pytest.approx(1) and found.unexplained == pytest.approx(0, abs=1e-9)
    assert found.states >= 6 and found.pairs == sum(int((shift_BLL != 0).sum()) for shift_BLL in learned)
    monkeypatch.setattr(dependence, "exact_shifts", lambda *_: learned[-1].transpose(1, 2))
    assert shift_check.shift_fit().correlation < 0.999


def test_the_released_policy_knows_its_dllm(tmp_path: Path) -> None:
    ok, text = doctor.shifts(tmp_path)
    figures = re.search(r"correlate (\d\.\d\d), (\d\.\d\d) unexplained \((\d+) pairs in (\d+) states\)", text)
    assert ok and figures, text
    correlation, unexplained, pairs, states = map(float, figures.groups())
    assert correlation >= doctor.CORRELATION and unexplained <= 0.6 and pairs >= 2000 and states >= 30


def test_shifts_of_another_dllm_are_a_failure_with_its_remedy(
    tmp_path: Path, learned: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = torch.Generator().manual_seed(0)
    monkeypatch.setattr(dependence, "exact_shifts", lambda *_: torch.randn(learned[-1].shape, generator=source))
    ok, text = doctor.shifts(tmp_path)
    assert not ok and has_remedy(text)


def test_without_onnx_runtime_its_pip_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    ok, text = doctor.shifts(tmp_path)
    assert ok and text.startswith("not compared: onnxruntime is not installed") and "[onnx]" in text
