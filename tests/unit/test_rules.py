"""The table of rules: every entry can be built, and a new entry is all that settings, sweep, reports, line need."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from matplotlib.figure import Figure
from typer.testing import CliRunner

from components import cli
from components.commands.resolve import rule
from components.core.errors import SettingsError
from components.core.rng import Noise
from components.core.types import Needs, Observation
from components.evaluation.evaluate import Scope, Sweep, table
from components.evaluation.results import write_table
from components.policies.rules import RULES, Rule, check_number, decoders, heuristic, is_random
from components.reports import fronts, pareto
from components.settings import Settings
from components.stages.rules import sweep_of
from tests.messages import has_remedy
from tests.outputs import read_table
from tests.unit.test_contributing import example, text_of

ROOT = Path(__file__).parents[2]
TINY: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))


def observation(needs: Needs) -> Observation:
    """Three rows of five positions that are all tied, and whatever a rule may read of them."""
    source = torch.Generator().manual_seed(0)
    masked_BL = torch.ones(3, 5, dtype=torch.bool)
    probability = torch.rand(3, 1, 4, generator=source).softmax(-1).sort(-1, descending=True).values.expand(3, 5, 4)
    confidence_BL = probability[..., 0]
    return Observation(
        masked_BL,
        masked_BL,
        torch.zeros(3, dtype=torch.int64),
        torch.full((3,), 5),
        token_BL=torch.randint(0, 3, (3, 5), generator=source),
        confidence_BL=confidence_BL,
        log_odds_BL=torch.logit(confidence_BL),
        margin_BL=confidence_BL - probability[..., 1],
        entropy_BL=-(probability * probability.log()).sum(-1),
        drift_BLH=torch.zeros(3, 5, 2),
        top_BLK=probability,
        top_ids_BLK=torch.arange(4).expand(3, 5, 4),
        attention_BLLA=torch.full((3, 5, 5, 1), 0.05),
        attention_layers=(-1,),
        answer_BL=torch.zeros(3, 5, dtype=torch.int64) if needs.answer else None,
    )


def number_of(entry: Rule) -> float | None:
    """A number that the rule takes."""
    if not entry.number or entry.default is not None:
        return entry.default
    return (entry.low + entry.high) / 2 if entry.high < float("inf") else entry.low + 1


@pytest.mark.parametrize("name", RULES)
def test_every_entry_makes_a_rule_that_commits(name: str) -> None:
    made = heuristic(name, number_of(RULES[name]))
    obs = observation(made.needs)
    action = made.distribution(obs).sample(Noise(torch.arange(3), obs.step_B))
    assert bool(action.drawn_BL.any(-1).all())


@pytest.mark.parametrize("name", RULES)
def test_only_the_rules_that_are_said_to_be_random_are(name: str) -> None:
    made = heuristic(name, number_of(RULES[name]))
    distribution = made.distribution(observation(made.needs))
    certain = bool((distribution.entropy() == 0).all()) if hasattr(distribution, "entropy") else False
    assert certain != RULES[name].random


@pytest.mark.parametrize("name", [name for name, entry in RULES.items() if entry.number])
def test_a_number_is_taken_within_its_bounds_and_refused_beyond(name: str) -> None:
    entry = RULES[name]
    inside = [entry.low + entry.above, *([entry.high] if entry.high < float("inf") else [100.0])]
    beyond = [entry.low - 1, float("inf"), float("nan"), *([entry.high + 1] if entry.high < float("inf") else [])]
    beyond += [entry.low] * entry.above + [1.5] * entry.whole
    for value in inside:
        check_number(name, value, f"{name}={value:g}")
    for value in beyond:
        with pytest.raises(SettingsError, match=f"{name}={value:g}: {name} takes {entry.range}") as refused:
            check_number(name, value, f"{name}={value:g}")
        assert has_remedy(str(refused.value))


def test_a_rule_without_a_number_takes_none_and_one_with_a_default_needs_none() -> None:
    with pytest.raises(SettingsError, match="teacher takes no number"):
        heuristic("teacher", 1)
    with pytest.raises(SettingsError, match="threshold takes a number"):
        heuristic("threshold")
    assert heuristic("margin") == heuristic("margin", 1)
    with pytest.raises(SettingsError, match="did you mean confidence"):
        heuristic("confidense", 1)


def test_the_table_is_read_without_torch() -> None:
    code = "import sys; from components import cli; from components.policies.rules import RULES; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"torch", "numpy", "pydantic"} & set(loaded.split())


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"treshold": [0.9]}, r"'treshold' is no rule \(did you mean threshold\?\)"),
        ({"threshold": [0.9, 7]}, "threshold=7: threshold takes a number from 0 to 1"),
        ({"margin": [1.5]}, "margin=1.5: margin takes a whole number of at least 1"),
        ({"factor": [0]}, "factor=0: factor takes a number above 0"),
        ({"teacher": [1]}, "teacher cannot decode"),
    ],
)
def test_a_sweep_that_cannot_work_is_refused(rules: dict[str, list[float]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settings_with(rules)


def settings_with(rules: dict[str, list[float]], **distill: Any) -> Settings:
    raw = copy.deepcopy(TINY)
    raw["sweep"]["rules"] = rules
    raw["distill"] |= distill
    return Settings.model_validate(raw)


# --- a new rule, in one file ----------------------------------------------------------------------------------------


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> str:
    """The example of CONTRIBUTING, which enters itself into the table."""
    monkeypatch.setitem(RULES, "margin_threshold", RULES["margin"])
    example("heuristic")
    return "margin_threshold"


@pytest.mark.e2e
def test_a_new_rule_is_one_block_in_one_file(tmp_path: Path) -> None:
    """Appended to the table's file, the example is known to settings, sweep and command line of a new process."""
    shutil.copytree(ROOT / "components", tmp_path / "components", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "components/policies/rules.py").open("a", encoding="utf-8") as file:
        file.write(re.sub(r"from \S+ import RULES, Rule\n", "", text_of("heuristic")))
    raw = copy.deepcopy(TINY)
    raw["sweep"]["rules"] = {"margin_threshold": [0.3]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    code = """
from pathlib import Path
from components.cli.tools import RULES_EPILOG
from components.commands.resolve import rule
from components.settings import read
from components.stages.rules import sweep_of

found = sweep_of(read(Path("params.yaml")).sweep, None).candidates(8)
print(found[-1].family, found[-1].policy == rule("margin_threshold:0.3"), "margin_threshold:N" in RULES_EPILOG)
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["margin_threshold", "True", "True"], done.stderr


def test_a_new_rule_is_swept_as_params_yaml_asks(added: str) -> None:
    sweep = settings_with({"confidence": [1], added: [0.2, 0.6]}).sweep
    encoder: Any = SimpleNamespace(end_ids=frozenset())
    for wide in (True, False):
        found = sweep_of(sweep, encoder).candidates(8, wide)
        mine = [(c.setting, c.block_length, c.policy) for c in found if c.family == added]
        assert mine == [(f"{n:g}", size, heuristic(added, n)) for size in (4, None) for n in (0.2, 0.6)]


def test_a_new_rule_is_a_reference_of_the_trainings(added: str) -> None:
    assert settings_with({}, reference=added, value=0.5).distill.reference == added
    for wrong in ({"value": 1.5}, {"reference": "margin_treshold", "value": 0.5}):
        with pytest.raises(ValueError, match=r"a number from 0 to 1|did you mean margin_threshold"):
            settings_with({}, **{"reference": added, "value": 0.5, **wrong})
    with pytest.raises(ValueError, match="several positions"):
        raw = copy.deepcopy(TINY)
        raw["policy"] = {"kind": "feature", "heads": 2, "mlp_width": 16, "hidden": 1, "top_k": 3, "shortlist": 3}
        raw["distill"] |= {"reference": added, "value": 0.5}
        Settings.model_validate(raw)


def test_a_new_rule_is_decoded_labelled_and_drawn(added: str, key_first: Any, tmp_path: Path) -> None:
    length, sweep = key_first.canvas_length, Sweep([None], {"confidence": [1], added: [0.3, 0.8]})
    scope = Scope("keys", "toy", "test")
    found = table(key_first.denoiser(), sweep.candidates(length), key_first.prompts(), [0, 1], scope)
    assert [result.seeds for result in found] == [1, 1, 1] and not is_random(added)
    write_table(tmp_path / "table.csv", found)
    results = read_table(tmp_path / "table.csv")
    names = [fronts.name_of(result, length) for result in results]
    assert names == ["max confidence, 1 per step", "margin threshold 0.3", "margin threshold 0.8"]
    ax = Figure().subplots()
    pareto.panel(ax, results)
    assert {text.get_text() for text in ax.texts} == {"margin threshold", "max confidence"}
    assert fronts.corners(results)


def test_a_new_rule_is_accepted_on_the_command_line(added: str) -> None:
    assert rule(f"{added}:0.3").least == 0.3
    with pytest.raises(SettingsError, match=r"margin_threshold:7: .* from 0 to 1"):
        rule(f"{added}:7")
    with pytest.raises(SettingsError, match="did you mean margin_threshold"):
        rule("margin_treshold:0.3")


def test_the_help_of_decode_lists_every_rule_with_its_range() -> None:
    said = " ".join(CliRunner().invoke(cli.app, ["decode", "--help"]).output.split())
    for name, entry in decoders().items():
        assert (f"{name}:N {entry.range}: {entry.number}" if entry.number else f"{name} {entry.range}") in said
