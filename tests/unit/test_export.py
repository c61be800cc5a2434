"""Laws of the exported file: it is the policy, it says what it is, it refuses what it was not made for."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from components.core.errors import CheckpointError, DataError, ParityError, SettingsError
from components.core.rng import Noise, generator, row_keys
from components.core.types import Needs, Observation
from components.decode.engine import rollout
from components.decode.job import DecodeOptions
from components.decode.prompts import Prompts
from components.denoisers import embedded
from components.export import (
    Decoding,
    NumpyPolicy,
    OnnxPolicy,
    actions,
    check_parity,
    export_policy,
    random_observation,
    random_states,
)
from components.export.onnx_file import FIELDS, VERSION
from components.export.parity import TOLERANCE
from components.maths.distributions import Categorical, commit
from components.policies import store
from components.policies.confidence import ConfidencePolicy, Shape
from components.policies.coupled import CoupledPolicy, CoupledShape
from components.policies.feature import FeaturePolicy, FeatureShape
from components.policies.store import LearnedPolicy
from components.tasks.example import Example
from components.tracking.model import identity
from tests.doubles import arrays

WIDTH = 16  # of the denoiser, hence of the features
CALLER = {"commit": "0123abc", "training": '{"iterations": 3}'}


Exported = Callable[[str], tuple[LearnedPolicy, Path]]
SMALL: dict[str, Any] = dict(width=16, heads=2, mlp_width=32)
CASES = {
    "bernoulli": lambda: ConfidencePolicy(Shape(("log_odds", "bound", "margin"), **SMALL), temperature=0.7, scale=0.8),
    "dpls": lambda: ConfidencePolicy(
        Shape(("log_odds", "top"), 3, WIDTH, action="dpls", alphas=(0.3, 9.0), where="all", rounded=True, **SMALL),
        speed=2.5,
    ),
    "categorical": lambda: FeaturePolicy(
        FeatureShape(WIDTH, heads=2, mlp_width=32, hidden=2, top_k=3, shortlist=2), temperature=0.5
    ),
    "coupled": lambda: CoupledPolicy(
        CoupledShape(3, pair_width=8, attention=(-1,), offsets=2, features=WIDTH, kappa=0.7, tau=-0.3, **SMALL),
        temperature=0.8,
        offset=-0.1,
    ),
}


def make(name: str) -> LearnedPolicy:
    """No weight is zero, those that start there included; utilities on either side of zero."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        policy = CASES[name]().eval()
        for value in policy.parameters():
            value.add_(torch.randn(value.shape) * 0.3)
        utilities_BL = policy.score(random_observation(policy, 8, 16, "centre"))
        if isinstance(policy, ConfidencePolicy):
            policy.head.bias.sub_(utilities_BL[utilities_BL.isfinite()].mean())
    return policy


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """One export for each case, made when it is first asked for: they take seconds."""

    @functools.cache
    def export(name: str) -> tuple[LearnedPolicy, Path]:
        policy, path = make(name), tmp_path_factory.mktemp("export") / f"{name}.onnx"
        export_policy(policy, path, CALLER)
        return policy, path

    return export


# One export in the unit tier.
LONG = [name if name == "bernoulli" else pytest.param(name, marks=pytest.mark.e2e) for name in CASES]


@pytest.fixture(scope="module", params=LONG)
def pair(request: pytest.FixtureRequest, exported: Exported) -> tuple[LearnedPolicy, Path]:
    return exported(request.param)


@pytest.fixture(scope="module")
def bernoulli(exported: Exported) -> tuple[LearnedPolicy, Path]:
    return exported("bernoulli")


@pytest.fixture(scope="module")
def decoding() -> Decoding:
    denoiser, encoder = embedded.build("dream", "abcdefg", embedded.Shape(WIDTH, 1, 2, 32, 64), seed=3)
    examples = [Example("letters", prompt, "a") for prompt in ("a", "bcd", "gfedc", "ab", "fade", "cab", "e", "bag")]
    lengths = [6, 8, 8, 5, 6, 9, 4, 7]
    prompts = Prompts([], examples, [encoder.prompt(x.prompt) for x in examples], lengths, encoder)
    return Decoding(denoiser, prompts, block_length=None, seed=5, rows=3)


def test_the_layout_is_the_observation() -> None:
    tensors = {f.name for f in fields(Observation)} - {"canvas_start", "attention_layers"}
    assert set(FIELDS) == tensors
    obs = random_observation(make("categorical"), 2, 4)
    assert all(FIELDS[name] == value.numpy().dtype for name, value in obs.tensors().items())


def test_numpy_noise_is_the_torch_noise() -> None:
    prompt, member = torch.randint(-(2**63), 2**63 - 1, (2, 50), generator=generator("noise"))
    step = torch.arange(50) * 7
    keys = row_keys(11, prompt, member)
    ours = actions.row_keys(11, prompt.numpy(), member.numpy())
    assert np.array_equal(ours, keys.numpy())
    for stream in range(3):
        expected = Noise(keys, step).uniform(stream, 33).numpy()
        assert np.array_equal(actions.Noise(ours, step.numpy()).uniform(stream, 33), expected)


@pytest.mark.e2e
def test_the_file_is_the_policy(pair: tuple[LearnedPolicy, Path], decoding: Decoding) -> None:
    """On random states of sizes the export never saw, and on whole decodes with padding, blocks and refilling."""
    policy, path = pair
    report = check_parity(policy, OnnxPolicy(path), random_states(policy, 500, path.stem), decoding)
    assert report.near_ties == 0
    assert report.texts == report.equal_texts == report.equal_orders == 16


def test_another_policy_is_not_the_file(bernoulli: tuple[LearnedPolicy, Path], decoding: Decoding) -> None:
    policy, path = bernoulli
    states = random_states(policy, 50)
    for knob in ("temperature", "scale"):
        other = make("bernoulli")
        setattr(other, knob, 0.3)
        with pytest.raises(ParityError, match=r"choose other positions by .* from the same utilities"):
            check_parity(other, OnnxPolicy(path), states)
    other = make("bernoulli")
    assert isinstance(other, ConfidencePolicy)
    with torch.no_grad():
        other.head.bias.add_(1e-3)
    with pytest.raises(ParityError, match=r"utilities differ by up to 1\.0.e-03"):
        check_parity(other, OnnxPolicy(path), states)
    with pytest.raises(ParityError, match="utilities differ"):
        check_parity(other, OnnxPolicy(path), [], decoding)


def test_rows_do_not_see_their_neighbours_or_their_padding(pair: tuple[LearnedPolicy, Path]) -> None:
    policy, path = pair
    exported, obs = OnnxPolicy(path), random_observation(policy, 6, 20, "rows")
    together = exported.score(obs)
    for row in range(6):
        alone = exported.score(obs.rows(torch.tensor([row])))
        assert torch.allclose(alone, together[row : row + 1], atol=TOLERANCE)
        size, start = int(obs.length_B[row]), obs.canvas_start
        cut = {
            name: value[row : row + 1, : size + (start if name in ("features_BTD", "attend_BT") else 0)]
            for name, value in obs.tensors().items()
            if value.ndim > 1
        }
        cut |= {name: value[:, :, :size] for name, value in cut.items() if name == "attention_BLLA"}
        alone = exported.score(replace(obs.rows(torch.tensor([row])), **cut))
        assert torch.allclose(alone, together[row : row + 1, :size], atol=TOLERANCE)


def test_numpy_chooses_what_torch_chooses(pair: tuple[LearnedPolicy, Path]) -> None:
    policy, path = pair
    exported, light = OnnxPolicy(path), NumpyPolicy(path)
    empty = drawn = 0
    for number, obs in enumerate(random_states(policy, 600, "numpy")):
        rows = torch.arange(len(obs.step_B))
        noise = Noise(row_keys(7, rows, rows + number), obs.step_B)
        same = actions.Noise(noise.key_B.numpy(), noise.step_B.numpy())
        distribution = exported.distribution(obs)
        for action, choose, uniform in (
            (distribution.mode(), "mode", None),
            (distribution.sample(noise), "sample", same.uniform),
        ):
            for force in (True, False):
                expected = commit(distribution, action, obs.eligible_BL, force).committed_BL
                assert expected is not None
                chosen = light.choose(arrays(obs), choose, uniform, force)
                assert np.array_equal(chosen, expected.numpy())
            empty += int((~action.drawn_BL.any(-1) & obs.eligible_BL.any(-1)).sum())
            drawn += int(action.drawn_BL.sum())
    assert drawn > 500 and (empty > 0) == (path.stem == "bernoulli")


def test_numpy_takes_ties_and_what_may_be_chosen_like_the_loop(bernoulli: tuple[LearnedPolicy, Path]) -> None:
    eligible = np.array([[False, True, True, True], [False, False, False, False]])
    utilities = np.array([[9.0, -1.0, -1.0, -2.0]] * 2, np.float32)
    for kind in ("bernoulli", "categorical", "dpls"):
        action = {"kind": kind, "temperature": 1.0, "scale": 1.0}
        scores = {"utilities_BL": utilities, "eligible_BL": eligible}
        chosen = actions.commit(action, scores, None, force=True)
        assert chosen.tolist() == [[False, True, False, False], [False] * 4]
    policy, path = bernoulli
    obs = random_observation(policy, 3, 8)
    given = arrays(obs) | {"eligible_BL": obs.masked_BL.numpy()}
    left_out = {name: value for name, value in given.items() if name != "eligible_BL"}
    assert np.array_equal(NumpyPolicy(path).choose(given), NumpyPolicy(path).choose(left_out))
    noise = actions.Noise(given["step_B"], given["step_B"]).uniform
    for choose, uniform in (("sample", None), ("best", None), ("best", noise), ("mode", noise)):
        with pytest.raises(SettingsError, match="Use 'mode'"):
            NumpyPolicy(path).choose(given, choose, uniform)


def test_without_torch_the_file_scores_and_chooses(pair: tuple[LearnedPolicy, Path], tmp_path: Path) -> None:
    policy, path = pair
    obs = random_observation(policy, 4, 10, "subprocess")
    np.savez(tmp_path / "fields.npz", allow_pickle=False, **arrays(obs))
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from components.export import NumpyPolicy\n"
        "from components.export.actions import Noise, row_keys\n"
        "policy, fields = NumpyPolicy(Path(sys.argv[1])), dict(np.load(sys.argv[2]))\n"
        "rows = np.arange(4)\n"
        "noise = Noise(row_keys(1, rows, rows), fields['step_B'])\n"
        "np.savez(sys.argv[3], score=policy.score(fields), mode=policy.choose(fields),\n"
        "         sample=policy.choose(fields, 'sample', noise.uniform))\n"
    )
    subprocess.run([sys.executable, "-c", script, path, tmp_path / "fields.npz", tmp_path / "out.npz"], check=True)
    out = np.load(tmp_path / "out.npz")
    distribution = OnnxPolicy(path).distribution(obs)
    rows = torch.arange(4)
    sample = distribution.sample(Noise(row_keys(1, rows, rows), obs.step_B))
    for action, name in ((distribution.mode(), "mode"), (sample, "sample")):
        expected = commit(distribution, action, obs.eligible_BL, force=True).committed_BL
        assert expected is not None and np.array_equal(out[name], expected.numpy())
    assert np.allclose(out["score"], policy.score(obs).detach().numpy(), atol=TOLERANCE)


def test_metadata_says_what_the_file_is(pair: tuple[LearnedPolicy, Path]) -> None:
    policy, path = pair
    exported = OnnxPolicy(path)
    assert exported.needs == policy.needs
    assert {name: exported.metadata[name] for name in CALLER} == CALLER
    described = json.loads(exported.metadata["unmask.policy"])
    assert store.build(described).shape == policy.shape and described["speed"] == policy.speed
    distribution = exported.distribution(random_observation(policy, 2, 5))
    assert type(distribution) is type(policy.distribution(random_observation(policy, 2, 5)))
    action = json.loads(exported.metadata["unmask.action"])
    assert action.pop("kind") == path.stem
    if isinstance(policy, CoupledPolicy):
        tau, kappa, cost = (x.item() for x in (policy.tau + policy.offset, policy.log_kappa.exp(), policy.cost))
        assert action == {"tau": tau, "kappa": kappa, "cost": cost, "temperature": 0.8}
    else:
        assert action == {name: vars(policy)[name] for name in action} and "temperature" in action
    exporter = json.loads(exported.metadata["unmask.exporter"])
    graph = onnx.load(path)
    assert exporter["opset"] == graph.opset_import[0].version
    assert exporter["torch"] == version("torch")
    assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()  # no stack traces of this machine
    assert not any(t.HasField("data_location") and t.data_location for t in graph.graph.initializer)
    assert list(path.parent.iterdir()) == [path]


def test_inputs_are_what_the_policy_reads(pair: tuple[LearnedPolicy, Path]) -> None:
    policy, path = pair
    obs = random_observation(policy, 3, 7)
    names = {value.name for value in onnx.load(path).graph.input}
    expected = policy.score(obs)
    for name in obs.tensors().keys() - {"masked_BL", "eligible_BL", "step_B", "length_B", "alpha_B"}:
        without = replace(obs, **{name: None})
        if name in names:
            with pytest.raises(DataError, match=f"no {name}.*reads it.*needs"):
                OnnxPolicy(path).score(without)
        else:
            assert torch.allclose(OnnxPolicy(path).score(without), expected, atol=TOLERANCE)


@pytest.mark.e2e
def test_a_conditioned_file_takes_each_row_s_speed_or_else_its_own(exported: Exported) -> None:
    """``alpha_B`` is an input of a policy that was trained for several alphas, and of no other."""
    for name, reads in (("dpls", True), ("bernoulli", False), ("categorical", False)):
        policy, path = exported(name)
        inputs = {value.name for value in onnx.load(path).graph.input}
        assert ("alpha_B" in inputs) is reads
    policy, path = exported("dpls")
    obs = random_observation(policy, 3, 7)
    silent = replace(obs, alpha_B=None)
    asked = replace(obs, alpha_B=torch.full((3,), policy.speed))
    for one in (OnnxPolicy(path), policy):
        assert torch.allclose(one.score(silent), one.score(asked), atol=1e-6)
        assert not torch.allclose(one.score(silent), one.score(obs), atol=1e-2)
    given = {n: v for n, v in arrays(silent).items()}
    assert np.allclose(NumpyPolicy(path).score(given), policy.score(asked).detach().numpy(), atol=TOLERANCE)
    assert OnnxPolicy(path).metadata["unmask.policy"].count('"speed": 2.5') == 1


@pytest.mark.e2e
def test_the_same_policy_gives_the_same_bytes(bernoulli: tuple[LearnedPolicy, Path], tmp_path: Path) -> None:
    _, path = bernoulli
    again = make("bernoulli").train().double()
    export_policy(again, tmp_path / "again.onnx", CALLER)
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()
    assert (
        isinstance(again, ConfidencePolicy) and again.training and again.head.bias.dtype == torch.float64
    )  # the caller's policy is left as it was
    model = onnx.load(path)
    model.metadata_props[0].value += " of another commit"
    onnx.save(model, tmp_path / "told.onnx")
    assert identity(tmp_path / "told.onnx") == identity(path)


def test_wrong_layouts_are_refused_by_name(bernoulli: tuple[LearnedPolicy, Path]) -> None:
    policy, path = bernoulli
    obs, exported = random_observation(policy, 2, 5), OnnxPolicy(path)
    light, good = NumpyPolicy(path), arrays(obs)
    for changed, told in (
        ({"step_B": good["step_B"].astype(np.int32)}, "step_B is int32.*reads int64.*Give it"),
        ({"masked_BL": good["masked_BL"].astype(np.float32)}, "masked_BL is float32.*reads bool"),
        ({"entropy_BL": good["entropy_BL"][:, :4]}, r"entropy_BL has the shape \(2, 4\).*one observation"),
        ({"step_B": good["step_B"][:1]}, r"step_B has the shape \(1,\).*'batch': 2"),
        ({"margin_BL": good["margin_BL"][..., None]}, r"margin_BL has the shape \(2, 5, 1\)"),
    ):
        with pytest.raises(DataError, match=told):
            light.score(good | changed)
    wide = light.score(good | {"entropy_BL": good["entropy_BL"].astype(np.float64)})
    assert np.array_equal(wide, exported.score(obs).numpy())


def test_files_that_are_not_ours_are_refused(bernoulli: tuple[LearnedPolicy, Path], tmp_path: Path) -> None:
    _, path = bernoulli

    def changed(name: str, value: str | None) -> Path:
        model, made = onnx.load(path), tmp_path / "changed.onnx"
        kept = {p.key: p.value for p in model.metadata_props if p.key != name} | ({name: value} if value else {})
        onnx.helper.set_model_props(model, kept)
        onnx.save(model, made)
        return made

    (tmp_path / "noise.onnx").write_bytes(b"not a graph")
    renamed = onnx.load(path)
    renamed.graph.output[0].name = renamed.graph.node[-1].output[0] = "logits"
    onnx.save(renamed, tmp_path / "renamed.onnx")
    for file, told in (
        (tmp_path / "nothing.onnx", "is not there"),
        (tmp_path / "noise.onnx", "does not open in ONNX Runtime"),
        (changed("unmask.version", None), "no unmask.version in its metadata.*export_policy"),
        (tmp_path / "renamed.onnx", r"outputs \['logits'\]"),
    ):
        with pytest.raises(CheckpointError, match=told):
            OnnxPolicy(file)
    for other in (VERSION - 1, VERSION + 1):
        with pytest.raises(CheckpointError, match=rf"layout version {other}.*version {VERSION} alone.*Export"):
            NumpyPolicy(changed("unmask.version", str(other)))
    with pytest.raises(CheckpointError, match=r"unmask\.needs is missing"):
        OnnxPolicy(changed("unmask.needs", None))
    with pytest.raises(CheckpointError, match="'bandit'"):
        OnnxPolicy(changed("unmask.action", '{"kind": "bandit"}'))
    for text in (
        "[1]",
        "7",
        "null",
        '{"kind": ',
        '{"kind": "bernoulli", "temperature": NaN, "scale": 1.0}',
        "[" * 9000,
    ):
        with pytest.raises(CheckpointError, match=r"unmask\.action is missing or no JSON object of finite numbers"):
            OnnxPolicy(changed("unmask.action", text))
    for knobs in ('"temperature": "1"', '"temperature": 1.0', '"temperature": 1.0, "scale": 1.0, "kappa": 1.0'):
        with pytest.raises(CheckpointError, match="An exported policy reads"):
            OnnxPolicy(changed("unmask.action", f'{{"kind": "bernoulli", {knobs}}}'))


def test_what_cannot_be_described_is_not_exported(bernoulli: tuple[LearnedPolicy, Path], tmp_path: Path) -> None:
    policy, _ = bernoulli
    with pytest.raises(SettingsError, match=r"unmask\.needs.*own.*Choose others"):
        export_policy(policy, tmp_path / "policy.onnx", {"unmask.needs": "nothing"})

    class Narrowed(ConfidencePolicy):
        def distribution(self, obs: Observation) -> Categorical:
            first_BL = obs.eligible_BL & (obs.eligible_BL.cumsum(-1) == 1)
            return Categorical(self.score(obs), first_BL)

    with pytest.raises(SettingsError, match="Categorical over other positions"):
        export_policy(Narrowed(Shape(**SMALL)), tmp_path / "policy.onnx", {})
    assert not (tmp_path / "policy.onnx").exists()


class Greedy:
    """The first position that is left, by a policy that asks for more than it reads."""

    needs = Needs("all", top_k=5, features="sequence")

    def score(self, obs: Observation) -> torch.Tensor:
        return -torch.arange(obs.masked_BL.shape[1]).expand(obs.masked_BL.shape).float()

    def distribution(self, obs: Observation) -> Categorical:
        return Categorical(self.score(obs), obs.eligible_BL)


def test_decodes_alike_beside_a_policy_that_needs_more(pair: tuple[LearnedPolicy, Path], decoding: Decoding) -> None:
    """Expert steering: the loop then computes what both need, more of the probabilities and of the features."""
    policy, path = pair
    job = decoding.prompts.job(None, group=1, experts=1)
    own_R = job.policy_R == 0
    for one in (policy, OnnxPolicy(path)):
        together = rollout(decoding.denoiser, [one, Greedy()], job, DecodeOptions(seed=1, choose="mode"))
        alone = rollout(decoding.denoiser, one, decoding.prompts.job(None), DecodeOptions(seed=1, choose="mode"))
        assert torch.equal(together.canvas_RL[own_R], alone.canvas_RL)
        assert torch.equal(together.order_RL[own_R], alone.order_RL)
