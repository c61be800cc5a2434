"""The exported coupled policy: its pairs, its scalars and its greedy loop are in the file, and the knob for speed."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from components.core.errors import CheckpointError, DataError, ParityError, SettingsError
from components.core.rng import Noise, generator, row_keys
from components.core.types import Observation
from components.decode.prompts import Prompts
from components.decode.readout import LOG_ODDS_LIMIT
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
from components.export.onnx_file import OUTPUTS
from components.export.parity import TOLERANCE
from components.maths.coupled import CoupledPlackettLuce
from components.maths.distributions import Categorical
from components.policies.coupled import CoupledPolicy, CoupledShape
from components.tasks.example import Example
from tests.doubles import arrays

torch.set_num_threads(1)
pytestmark = pytest.mark.e2e  # five exports

WIDTH = 16
Exported = Callable[[str], tuple[CoupledPolicy, Path]]
PLAIN = CoupledShape(top_k=3, width=16, heads=2, mlp_width=16, pair_width=8, kappa=0.8, tau=-0.5, cost=1.5)
SHAPES = {
    "marginals": PLAIN,
    "everything": replace(PLAIN, attention=(-1, 0), offsets=3, positions=300, features=WIDTH, alphas=(1.0, 4.0)),
    "no pairs": replace(PLAIN, pair_shifts=False, positions=300),
    "accept or skip": replace(PLAIN, action="accept", attention=(-1,), offsets=2),
    "one position": replace(PLAIN, action="categorical", attention=(-1,), offsets=2),
}


def make(shape: CoupledShape) -> CoupledPolicy:
    """No weight is zero, those that start there included; utilities on either side of zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        policy = CoupledPolicy(shape, temperature=0.9).eval().requires_grad_(False)
        for weight in policy.parameters():
            weight += 0.3 * torch.randn(weight.shape)
    return policy


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """One export for each shape, made when it is first asked for: they take seconds."""

    @functools.cache
    def export(name: str) -> tuple[CoupledPolicy, Path]:
        policy, path = make(SHAPES[name]), tmp_path_factory.mktemp("coupled") / "policy.onnx"
        export_policy(policy, path, {})
        return policy, path

    return export


@pytest.fixture(scope="module")
def decoding() -> Decoding:
    denoiser, encoder = embedded.build("llada", "abcdefg", embedded.Shape(WIDTH, 2, 2, 32, 64), seed=3)
    with torch.no_grad():  # neither flat nor certain
        for name, weight in denoiser.model.named_parameters():
            weight *= 8.0 if "lm_head" in name else 3.0 if weight.ndim == 2 else 1.0
    examples = [Example("letters", prompt, "a") for prompt in ("a", "bcd", "gfedc", "ab", "fade", "cab", "e", "bag")]
    lengths = [6, 8, 8, 5, 6, 9, 4, 7]
    prompts = Prompts([], examples, [encoder.prompt(x.prompt) for x in examples], lengths, encoder)
    return Decoding(denoiser, prompts, block_length=None, seed=5, rows=3)


@pytest.mark.parametrize("name", SHAPES)
def test_the_file_is_the_policy(name: str, exported: Exported, decoding: Decoding) -> None:
    """On random states of sizes that the export never saw, and on whole decodes by mode and sampling."""
    policy, path = exported(name)
    report = check_parity(policy, OnnxPolicy(path), random_states(policy, 400, name), decoding)
    assert report.near_ties == 0
    assert report.texts == report.equal_texts == report.equal_orders == 16


@pytest.mark.parametrize(
    ("name", "reads"),
    [
        ("marginals", {"length_B", "log_odds_BL", "entropy_BL", "top_BLK", "top_ids_BLK"}),
        ("no pairs", {"length_B", "log_odds_BL", "entropy_BL", "top_BLK"}),
        ("one position", {"length_B", "log_odds_BL", "entropy_BL", "top_BLK"}),
    ],
)
def test_one_file_reads_and_gives_what_the_policy_does(name: str, reads: set[str], exported: Exported) -> None:
    policy, path = exported(name)
    graph = onnx.load(path).graph
    kind = {"one position": "categorical", "accept or skip": "accept"}.get(name, "coupled")
    assert {value.name for value in graph.input} == reads | {"masked_BL"}
    assert tuple(value.name for value in graph.output) == OUTPUTS[kind]
    assert list(path.parent.iterdir()) == [path]
    action = json.loads(OnnxPolicy(path).metadata["unmask.action"])
    assert action["kind"] == kind and set(map(type, action.values())) == {str, float}
    obs = random_observation(policy, 3, 7, "kinds")
    assert isinstance(
        OnnxPolicy(path).distribution(obs), Categorical if name == "one position" else CoupledPlackettLuce
    )


def test_everything_that_the_utilities_are_made_of_is_compared(exported: Exported, decoding: Decoding) -> None:
    """A difference that shows in a pair, in the risk or in a scalar alone is found."""
    _, path = exported("marginals")
    states = random_states(make(PLAIN), 60, "other")
    for part in ("shifts.pairs.out.bias", "mix.bias", "cost", "tau", "log_kappa", "bias.bias"):
        other = make(PLAIN)
        dict(other.named_parameters())[part].add_(2e-3)
        for given in ((states, None), ([], decoding)):
            with pytest.raises(ParityError, match="utilities differ by up to"):
                check_parity(other, OnnxPolicy(path), *given)
    other = make(PLAIN)
    other.temperature = 0.3
    with pytest.raises(ParityError, match="choose other positions"):
        check_parity(other, OnnxPolicy(path), states)
    with pytest.raises(ParityError, match="draws by Categorical, the file by CoupledPlackettLuce"):
        check_parity(make(SHAPES["one position"]), OnnxPolicy(path), random_states(make(SHAPES["one position"]), 20))


def extreme(policy: CoupledPolicy) -> Observation:
    """Rows of one position, rows without a mask or without a choice, log-odds at their limits, ids that are missing."""
    obs = random_observation(policy, 6, 12, "extreme")
    assert obs.log_odds_BL is not None and obs.top_BLK is not None and obs.top_ids_BLK is not None
    masked_BL, eligible_BL = obs.masked_BL.clone(), obs.eligible_BL.clone()
    masked_BL[0], eligible_BL[0], masked_BL[1], eligible_BL[1] = False, False, True, False
    length_B = torch.tensor([12, 12, 1, 12, 12, 5])
    inside_BL = torch.arange(12) < length_B.unsqueeze(1)
    masked_BL[2:4] = eligible_BL[2:4] = True
    sign_BL = torch.where(torch.arange(12) % 2 == 0, LOG_ODDS_LIMIT, -LOG_ODDS_LIMIT).float()
    top_BLK, ids_BLK = obs.top_BLK.clone(), obs.top_ids_BLK.clone()
    top_BLK[3], ids_BLK[3] = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([2, -1, -1])
    return replace(
        obs,
        masked_BL=masked_BL & inside_BL,
        eligible_BL=eligible_BL & inside_BL,
        length_B=length_B,
        log_odds_BL=sign_BL.expand(6, 12) * inside_BL,
        top_BLK=top_BLK,
        top_ids_BLK=ids_BLK,
    )


@pytest.mark.parametrize("name", ["marginals", "everything"])
def test_nothing_is_ever_nan_at_the_edges(name: str, exported: Exported) -> None:
    """The attention mask is -inf at padding, log-odds are at their limits, whole rows have nothing to compare."""
    policy, path = exported(name)
    obs = extreme(policy)
    found, light = OnnxPolicy(path).distribution(obs), NumpyPolicy(path)
    for part in ("logits_BL", "bias_BL", "shift_BLL", "mix_BL"):
        assert bool(getattr(found, part).isfinite().all()), part
        expected = getattr(policy.distribution(obs), part)
        torch.testing.assert_close(getattr(found, part), expected, atol=TOLERANCE, rtol=1e-4)
    chosen_BL = torch.from_numpy(light.choose(arrays(obs)))
    assert torch.equal(chosen_BL.any(-1), obs.eligible_BL.any(-1)) and not bool((chosen_BL & ~obs.eligible_BL).any())
    assert torch.equal(chosen_BL, policy.distribution(obs).mode().drawn_BL)
    assert not check_parity(policy, OnnxPolicy(path), [obs]).near_ties


def drawn(distribution: Any, obs: Observation, noise: Noise) -> list[Tensor]:
    return [distribution.mode().drawn_BL, distribution.sample(noise).drawn_BL]


@pytest.mark.parametrize("name", ["marginals", "everything", "no pairs"])
def test_numpy_draws_what_torch_draws_at_any_speed(name: str, exported: Exported) -> None:
    """One number at serving time, in all three ways to serve: the policy, the file with torch, the file without."""
    policy, path = exported(name)
    served, amounts = make(SHAPES[name]), []
    for offset in (-4.0, 0.0, 0.5, 4.0):
        served.offset = offset
        one, light = OnnxPolicy(path, offset=offset), NumpyPolicy(path, offset=offset)
        amounts.append(0)
        for number, obs in enumerate(random_states(policy, 150, "speed")):
            rows = torch.arange(len(obs.step_B))
            noise = Noise(row_keys(7, rows, rows + number), obs.step_B)
            same = actions.Noise(noise.key_B.numpy(), noise.step_B.numpy()).uniform
            numpy = [light.choose(arrays(obs)), light.choose(arrays(obs), "sample", same)]
            for a, b, c in zip(
                drawn(served.distribution(obs), obs, noise),
                drawn(one.distribution(obs), obs, noise),
                numpy,
                strict=True,
            ):
                assert torch.equal(a, b) and np.array_equal(b.numpy(), c)
                amounts[-1] += int(a.sum())
            near: dict[str, Any] = dict(atol=TOLERANCE, rtol=1e-5)
            torch.testing.assert_close(one.score(obs), served.score(obs), **near)
            np.testing.assert_allclose(light.score(arrays(obs)), served.score(obs).numpy(), **near)
    assert amounts == sorted(set(amounts))  # each one draws more than the one before
    assert check_parity(served, OnnxPolicy(path, offset=4.0), random_states(policy, 50)).near_ties == 0


def test_an_offset_that_is_exported_is_part_of_the_file(exported: Exported, tmp_path: Path) -> None:
    policy = make(SHAPES["no pairs"])
    policy.offset = 1.5
    export_policy(policy, tmp_path / "fast.onnx", {})
    check_parity(policy, OnnxPolicy(tmp_path / "fast.onnx"), random_states(policy, 50))
    back = OnnxPolicy(tmp_path / "fast.onnx", offset=-1.5)
    check_parity(exported("no pairs")[0], back, random_states(policy, 50))


def test_an_offset_is_refused_where_nothing_has_a_speed(exported: Exported) -> None:
    _, path = exported("one position")
    for make_one in (OnnxPolicy, NumpyPolicy):
        with pytest.raises(SettingsError, match=r"offset=0\.5 is for coupled policies, .* draws by categorical"):
            make_one(path, offset=0.5)


def test_beside_a_policy_that_reads_more_it_reads_its_own_layers_and_ids(exported: Exported) -> None:
    policy, path = exported("everything")
    other = make(replace(SHAPES["everything"], top_k=5, attention=(-2, -1, 0)))
    both = random_observation(other, 4, 9, "beside")
    assert both.top_BLK is not None and both.top_ids_BLK is not None and both.attention_BLLA is not None
    own = replace(
        both,
        top_BLK=both.top_BLK[..., :3],
        top_ids_BLK=both.top_ids_BLK[..., :3],
        attention_BLLA=both.attention_BLLA[..., 1:],
        attention_layers=(-1, 0),
    )
    file = OnnxPolicy(path)
    one, two = file.distribution(both), file.distribution(own)
    assert isinstance(one, CoupledPlackettLuce)
    for part in fields(one):
        mine, theirs = getattr(one, part.name), getattr(two, part.name)
        assert torch.equal(mine, theirs) if isinstance(mine, Tensor) else mine == theirs
    torch.testing.assert_close(one.shift_BLL, policy(own)[1], atol=TOLERANCE, rtol=1e-4)
    with pytest.raises(DataError, match=r"attention_BLLA has the shape \(4, 9, 9, 3\)"):
        NumpyPolicy(path).choose(arrays(both))  # which layers these are does not stand in an array


def test_a_file_without_its_pairs_is_refused(exported: Exported, tmp_path: Path) -> None:
    """The action in the metadata and what the graph gives must belong together."""
    model = onnx.load(exported("marginals")[1])
    del model.graph.output[2]
    onnx.save(model, tmp_path / "torn.onnx")
    whole = onnx.load(exported("one position")[1])
    kept = {p.key: p.value for p in whole.metadata_props}
    onnx.helper.set_model_props(whole, kept | {"unmask.action": '{"kind": "coupled", "tau": 0.0}'})
    onnx.save(whole, tmp_path / "told.onnx")
    for name in ("torn", "told"):
        with pytest.raises(CheckpointError, match=r"action .*coupled.*Export it\s+again"):
            OnnxPolicy(tmp_path / f"{name}.onnx")


def test_a_row_does_not_see_its_neighbours_through_the_file(exported: Exported) -> None:
    policy, path = exported("everything")
    file, obs = OnnxPolicy(path), random_observation(policy, 6, 20, "rows")
    together = file.distribution(obs)
    order = torch.randperm(6, generator=generator("rows"))
    shuffled = file.distribution(obs.rows(order))
    for part in ("bias_BL", "shift_BLL", "mix_BL"):
        torch.testing.assert_close(getattr(shuffled, part), getattr(together, part)[order], atol=TOLERANCE, rtol=1e-4)
