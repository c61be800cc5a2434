"""``check_denoiser`` and ``check_policy``: by the protocol alone, every fault that decodes without an error gets its
sentence, and what is sound gets none."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from components.core.errors import CheckpointError, SettingsError
from components.core.rng import Noise
from components.core.types import Action, Canvas, Needs, Observation
from components.decode.batch import admit
from components.decode.engine import rollout
from components.decode.job import Job
from components.decode.refresh import require_finite
from components.denoisers import check_denoiser, embedded, with_cache
from components.denoisers.loading import probe
from components.maths.distributions import Bernoulli, Deterministic
from components.policies.check import check_policy
from components.policies.confidence import PAPER, ConfidencePolicy, Shape
from components.policies.coupled import CoupledPolicy, CoupledShape
from components.policies.feature import FeaturePolicy, FeatureShape
from components.policies.heuristics import Klass, MaxConfidence, SuppressTokens, Threshold
from components.policies.rules import RULES, heuristic
from components.policies.teacher import Teacher
from components.trainers.pretrain import Batch, Schedule, pretrain

torch.set_num_threads(1)

WORDS, WIDTH, MASK = 12, 8, 0


class Own:
    """A user's denoiser: no transformers, no ``model``, no ``shifted``. The parts below break one thing each."""

    mask_id, vocabulary, width, stateless = MASK, WORDS, WIDTH, True
    device = torch.device("cpu")

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.forbidden_ids = torch.tensor([MASK])
        self.embed, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.calls = 0

    def start(self, canvas: Canvas) -> Any:
        return None

    def attention(self, canvas: Canvas) -> Tensor:
        """(B, T, T) where each position looks: at all of the row, more at what is near."""
        place_BT = (canvas.attend_BT.cumsum(-1) - 1).float()
        near_BTT = -0.3 * (place_BT.unsqueeze(2) - place_BT.unsqueeze(1)).abs()
        return near_BTT.masked_fill(~canvas.attend_BT.unsqueeze(1), -1e9).softmax(-1)

    def hidden(self, canvas: Canvas, state: Any) -> tuple[Tensor, Any]:
        with torch.no_grad():
            x_BTD = self.embed(canvas.ids_BT)
            return x_BTD + torch.tanh(self.mix(self.attention(canvas) @ x_BTD)), state

    def logits(self, hidden_ND: Tensor) -> Tensor:
        with torch.no_grad():
            return self.head(hidden_ND)


class NoHead(Own):
    logits = property()  # type: ignore[assignment]


class NoMask(Own):
    def __init__(self) -> None:
        super().__init__()
        self.forbidden_ids = torch.tensor([3])


class MaskOutside(Own):
    mask_id = WORDS


class Narrow(Own):
    width = WIDTH + 1


class Small(Own):
    vocabulary = WORDS + 1


class Stateful(Own):
    stateless = False


class NotANumber(Own):
    def hidden(self, canvas: Canvas, state: Any) -> tuple[Tensor, Any]:
        return super().hidden(canvas, state)[0] * torch.nan, state


class Overflowing(Own):
    def logits(self, hidden_ND: Tensor) -> Tensor:
        return super().logits(hidden_ND) * 1e39


class Zero(Own):
    def hidden(self, canvas: Canvas, state: Any) -> tuple[Tensor, Any]:
        return super().hidden(canvas, state)[0] * 0, state


class CausalOwn(Own):
    def attention(self, canvas: Canvas) -> Tensor:
        whole = super().attention(canvas)
        return whole.tril() / whole.tril().sum(-1, keepdim=True)


class Backward(Own):
    def attention(self, canvas: Canvas) -> Tensor:
        whole = super().attention(canvas)
        return whole.triu() / whole.triu().sum(-1, keepdim=True)


class Leaking(Own):
    def attention(self, canvas: Canvas) -> Tensor:
        return super().attention(Canvas(canvas.ids_BT, torch.ones_like(canvas.attend_BT), canvas.start))


class ByColumn(Own):
    """Positions counted by column: padding in front moves them."""

    def hidden(self, canvas: Canvas, state: Any) -> tuple[Tensor, Any]:
        column_T1 = torch.arange(canvas.ids_BT.shape[1]).unsqueeze(1)
        return super().hidden(canvas, state)[0] + torch.sin(column_T1.float()), state


class ByBatch(Own):
    def hidden(self, canvas: Canvas, state: Any) -> tuple[Tensor, Any]:
        hidden_BTD = super().hidden(canvas, state)[0]
        return hidden_BTD - hidden_BTD.mean(0, keepdim=True), state


class Restless(Own):
    def hidden(self, canvas: Canvas, state: Any) -> tuple[Tensor, Any]:
        self.calls += 1
        return super().hidden(canvas, state)[0] + self.calls, state


class Writing(Own):
    def hidden(self, canvas: Canvas, state: Any) -> tuple[Tensor, Any]:
        found = super().hidden(canvas, state)
        canvas.ids_BT[:, -1] = 1
        return found


class Raising(Own):
    def hidden(self, canvas: Canvas, state: Any) -> tuple[Tensor, Any]:
        raise ValueError("out of luck")


class Showing(Own):
    """It shows the attention of its one layer, which looks nearer where the first token is small."""

    attention_layers = 1

    def attention(self, canvas: Canvas) -> Tensor:
        sharp_B11 = 1 + canvas.ids_BT.masked_fill(~canvas.attend_BT, 0).sum(-1).view(-1, 1, 1) / WORDS
        return super().attention(canvas) ** sharp_B11

    def attended(self, canvas: Canvas, state: Any, layers: tuple[int, ...]) -> tuple[Tensor, Tensor, Any]:
        hidden_BTD, state = self.hidden(canvas, state)
        shown_BLL = self.attention(canvas)[:, canvas.start :, canvas.start :]
        return hidden_BTD, torch.stack([shown_BLL for _ in layers], -1), state


class ShowingNothing(Own):
    attention_layers = 3


class ShowingOneLayer(Showing):
    def attended(self, canvas: Canvas, state: Any, layers: tuple[int, ...]) -> tuple[Tensor, Tensor, Any]:
        return super().attended(canvas, state, layers[:1])


class ShowingScores(Showing):
    def attended(self, canvas: Canvas, state: Any, layers: tuple[int, ...]) -> tuple[Tensor, Tensor, Any]:
        hidden_BTD, shown_BLLA, state = super().attended(canvas, state, layers)
        return hidden_BTD, shown_BLLA + 7.0, state


class ShowingPlaces(Showing):
    def attention(self, canvas: Canvas) -> Tensor:
        return Own.attention(self, canvas)


class ShowingAnotherForward(Showing):
    def attended(self, canvas: Canvas, state: Any, layers: tuple[int, ...]) -> tuple[Tensor, Tensor, Any]:
        hidden_BTD, shown_BLLA, state = super().attended(canvas, state, layers)
        return hidden_BTD + 1.0, shown_BLLA, state


class ShowingPadding(Showing):
    def attended(self, canvas: Canvas, state: Any, layers: tuple[int, ...]) -> tuple[Tensor, Tensor, Any]:
        hidden_BTD, shown_BLLA, state = super().attended(canvas, state, layers)
        return hidden_BTD, shown_BLLA / (1 + canvas.start), state


DENOISERS = {
    ShowingNothing: r"attention_layers=3, but there is no attended",
    ShowingOneLayer: r"attended\(\) gives attention \(2, 6, 6, 1\)",
    ShowingScores: "no softmax",
    ShowingPlaces: "attention does not depend on the tokens",
    ShowingAnotherForward: "other hidden states than hidden",
    ShowingPadding: "attention depends on the padding",
    NoMask: "lack the mask",
    MaskOutside: "outside the vocabulary",
    NoHead: "no logits",
    Narrow: r"where .* is \(2, 9, 9\)",
    Small: "positions of 13 tokens",
    Stateful: "start",
    NotANumber: "NaN or infinite",
    Overflowing: "logits are NaN or infinite",
    Zero: "constant",
    CausalOwn: "causally",
    Backward: "ignores the first token",
    Leaking: "what padding holds",
    ByColumn: "how much padding",
    ByBatch: "alone",
    Restless: "second time",
    Writing: "changes the canvas",
    Raising: "ValueError: out of luck",
}


@pytest.mark.parametrize("kind", DENOISERS, ids=lambda kind: kind.__name__)
def test_each_fault_of_a_denoiser_has_its_sentence(kind: type[Own]):
    problems = check_denoiser(kind())
    assert len(problems) == 1, problems
    assert re.search(DENOISERS[kind], problems[0]), problems


def test_a_user_s_own_denoiser_is_sound_and_decodes():
    assert check_denoiser(Own()) == check_denoiser(Showing()) == []
    assert bool(rollout(Own(), Threshold(0.9), Job.of([torch.tensor([1, 2])], 4, 4)).finished_R.all())


@pytest.mark.parametrize("kind", ["none", "prefix", "dual"])
@pytest.mark.parametrize("layout", ["llada", "dream"])
def test_the_library_s_own_denoisers_are_sound(layout: str, kind: str):
    denoiser, _ = embedded.build(layout, "abcdef", embedded.Shape(16, 2, 2, 24, 64), seed=0)
    assert check_denoiser(with_cache(denoiser, kind)) == []


@pytest.mark.parametrize(("spoil", "word"), [(float("nan"), "finite"), (0.0, "constant"), (float("inf"), "finite")])
def test_the_probe_does_not_blame_attention_for_numbers(spoil: float, word: str):
    denoiser, _ = embedded.build("llada", "abcdef", embedded.Shape(16, 2, 2, 24, 64), seed=0)
    denoiser.model.model.norm.weight.data.fill_(spoil)
    with pytest.raises(CheckpointError, match=word) as caught:
        probe(denoiser)
    assert "causal" not in str(caught.value)


def test_the_probe_names_activations_that_overflow():
    denoiser, _ = embedded.build("llada", "abcdef", embedded.Shape(16, 2, 2, 24, 64), seed=0)
    denoiser.model.lm_head.weight.data *= 1e38
    with pytest.raises(CheckpointError, match="logits are NaN or infinite"):
        probe(denoiser)


@pytest.mark.e2e
@pytest.mark.parametrize(("layout", "offset"), [("dream", "before"), ("llada", "behind")])
def test_logits_that_are_read_a_row_off_are_noticed_by_a_text_the_model_knows(layout: str, offset: str):
    text = "abcdefghij" * 3
    denoiser, encoder = embedded.build(layout, "abcdefghij", embedded.Shape(32, 2, 2, 48, 64), seed=0)
    answer_BL = encoder.plain(text).expand(16, -1)
    batch = Batch(answer_BL[:, :0], torch.ones(16, 0, dtype=torch.bool), answer_BL, 1.0)
    pretrain(denoiser, lambda step: [batch], Schedule(60, 3e-3, 5, 0), lambda step, metrics: None)
    assert check_denoiser(denoiser, encoder.plain(text)) == []
    denoiser.shifted = not denoiser.shifted
    problems = check_denoiser(denoiser, encoder.plain(text))
    assert len(problems) == 1 and "shifted by one" in problems[0] and offset in problems[0], problems


# --- policies ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mine:
    """A user's policy: commits by its own score; the parts below break one thing each."""

    needs: Needs = field(default_factory=lambda: Needs(statistics=("margin",)))

    def score(self, obs: Observation) -> Tensor:
        assert obs.margin_BL is not None
        return 4 * obs.margin_BL - 1

    def distribution(self, obs: Observation) -> Any:
        return Bernoulli(self.score(obs), obs.eligible_BL)


class NoScore:
    needs = Needs()

    def distribution(self, obs: Observation) -> Any:
        raise AssertionError


class WordyNeeds(NoScore):
    needs = ("margin",)  # type: ignore[assignment]

    def score(self, obs: Observation) -> Tensor:
        raise AssertionError


class OfRows(Mine):
    def score(self, obs: Observation) -> Tensor:
        return super().score(obs)[0]


class Undefined(Mine):
    def score(self, obs: Observation) -> Tensor:
        return (super().score(obs) - 100).log()


class Fickle(Mine):
    def score(self, obs: Observation) -> Tensor:
        return super().score(obs) + torch.rand(())


class Scribbling(Mine):
    def score(self, obs: Observation) -> Tensor:
        assert obs.margin_BL is not None
        obs.margin_BL.add_(1)
        return super().score(obs)


class Greedy(Mine):
    def distribution(self, obs: Observation) -> Any:
        return Deterministic(obs.masked_BL, obs.masked_BL, self.score(obs))


class Stuck(Mine):
    def distribution(self, obs: Observation) -> Any:
        return Bernoulli(self.score(obs) - 99, torch.zeros_like(obs.eligible_BL))


@dataclass(frozen=True)
class Doubled(Bernoulli):
    def log_prob(self, action: Action) -> Tensor:
        return 2 * super().log_prob(action)


class Wrong(Mine):
    def distribution(self, obs: Observation) -> Any:
        return Doubled(self.score(obs), obs.eligible_BL)


@dataclass(frozen=True)
class Unseeded(Bernoulli):
    def sample(self, noise: Noise) -> Action:
        return Action((torch.rand(self.logits_BL.shape) < 0.5) & self.eligible_BL)


class Unrepeatable(Mine):
    def distribution(self, obs: Observation) -> Any:
        return Unseeded(self.score(obs), obs.eligible_BL)


class Neighborly(Mine):
    def score(self, obs: Observation) -> Tensor:
        return super().score(obs) - super().score(obs).mean()


class Reaching(Mine):
    def score(self, obs: Observation) -> Tensor:
        return super().score(obs) + 0.1 * obs.masked_BL.shape[1]


class Greedier(Mine):
    def score(self, obs: Observation) -> Tensor:
        assert obs.entropy_BL is not None
        return obs.entropy_BL


POLICIES = {
    NoScore: "no score",
    WordyNeeds: "tuple, not Needs",
    OfRows: r"score\(\) gives",
    Undefined: "NaN",
    Fickle: "second time",
    Scribbling: "changes the observation's margin_BL",
    Greedy: "not eligible",
    Stuck: "would never end",
    Wrong: "sum to",
    Unrepeatable: "same noise",
    Neighborly: "alone",
    Reaching: "padding",
    Greedier: "AssertionError",
}


@pytest.mark.parametrize("kind", POLICIES, ids=lambda kind: kind.__name__)
def test_each_fault_of_a_policy_has_its_sentence(kind: type):
    problems = check_policy(kind())
    assert problems and any(re.search(POLICIES[kind], problem) for problem in problems), problems


def learned(**knobs: Any) -> ConfidencePolicy:
    torch.manual_seed(0)
    return ConfidencePolicy(Shape(width=16, heads=1, mlp_width=16, bias=0.0, **knobs)).eval()


SOUND = {
    "a user's own": Mine(),
    **{
        name: heuristic(name, 2 if rule.whole else 0.5)
        for name, rule in RULES.items()
        if rule.decodes and name not in ("adas", "dapd")  # these two read attention
    },
    "klass": Klass(0.6, 0.5),
    "max_confidence": MaxConfidence(),
    "suppressed": SuppressTokens(Threshold(0.5), (3,)),
    "teacher": Teacher(),
    "bernoulli": learned(),
    "bound": learned(inputs=("log_odds", "entropy", "margin", "bound")),
    "dpls": learned(action="dpls"),
    "categorical": learned(action="categorical", inputs=("top",), top_k=3),
    "features": learned(features=8),
    "alphas": learned(alphas=(1.0, 3.0)),
    "paper": ConfidencePolicy(replace(PAPER, width=16, mlp_width=16, bias=0.0)).eval(),
    "feature": FeaturePolicy(FeatureShape(8, heads=2, mlp_width=16, top_k=3)).eval(),
    "coupled": CoupledPolicy(CoupledShape(top_k=4, width=16, heads=2, attention=(-1,))).eval(),
    "coupled, one at a time": CoupledPolicy(CoupledShape(top_k=4, width=16, heads=2, action="categorical")).eval(),
    "shortlist": FeaturePolicy(FeatureShape(8, heads=2, mlp_width=16, top_k=3, shortlist=2)).eval(),
}


@pytest.mark.parametrize("name", SOUND)
def test_what_the_library_has_is_sound(name: str):
    assert check_policy(SOUND[name]) == []


# --- a policy and its dLLM -----------------------------------------------------------------------------------------


def test_hidden_states_whose_sum_is_infinite_are_finite() -> None:
    own, encoder = embedded.build("llada", "abcdef", embedded.Shape(16, 2, 2, 24, 64), seed=0)
    batch = admit(Job.of([encoder.prompt("ab")], 4, 4), torch.tensor([0]), own, 0)
    large_BTD = torch.full((1, 4, 16), 3e38)
    require_finite(batch, {"features_BTD": large_BTD})
    large_BTD[0, 2, 1] = torch.inf
    with pytest.raises(CheckpointError, match=r"position 2, .* hidden states"):
        require_finite(batch, {"features_BTD": large_BTD})


@pytest.mark.e2e
def test_a_policy_that_reads_hidden_states_decodes_over_its_own_dllm_alone(tmp_path: Path):
    from components.export import OnnxPolicy, export_policy
    from components.policies import store

    own, encoder = embedded.build("llada", "abcdef", embedded.Shape(16, 2, 2, 24, 64), seed=0)
    other, _ = embedded.build("llada", "abcdef", embedded.Shape(16, 2, 2, 24, 64), seed=1)
    policy = learned(features=16)
    policy.denoiser = own.fingerprint
    store.save(policy, tmp_path / "policy")
    export_policy(policy, tmp_path / "policy.onnx", {})
    job = Job.of([encoder.prompt("ab")], 4, 4)
    for kept in (policy, store.load(tmp_path / "policy"), OnnxPolicy(tmp_path / "policy.onnx")):
        assert bool(rollout(own, kept, job).finished_R.all())
        assert bool(rollout(with_cache(own, "dual"), kept, job).finished_R.all())
        with pytest.raises(SettingsError, match=own.fingerprint):
            rollout(other, kept, job)
        with pytest.raises(SettingsError, match="no known fingerprint"):
            rollout(Own(), kept, job)
    policy.drop_features(16)
    assert bool(rollout(other, policy, job).finished_R.all())


def test_a_policy_of_statistics_alone_decodes_over_any_dllm(tmp_path: Path):
    from components.policies import store

    other, encoder = embedded.build("llada", "abcdef", embedded.Shape(16, 2, 2, 24, 64), seed=1)
    policy = learned()
    policy.denoiser = "of another"
    store.save(policy, tmp_path)
    assert store.load(tmp_path).denoiser == ""
    assert bool(rollout(other, policy, Job.of([encoder.prompt("ab")], 4, 4)).finished_R.all())
