"""docs/papers.md keeps its word: the functions and tests that it maps equations to exist; the sections that it tells to
paste are the papers' presets."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.policies.confidence import PAPER
from components.policies.feature import FeatureShape
from components.policies.heuristics import Threshold
from components.settings import Feature, Settings
from components.stages.common.models import reference_of
from components.stages.influence import fresh_policy
from components.stages.train import expert_of, plan_of, reference_for
from components.trainers import grpo, upo

ROOT = Path(__file__).parents[2]
GPU: dict[str, Any] = yaml.safe_load((ROOT / "profiles" / "gpu.yaml").read_text(encoding="utf-8"))
TEXT = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
PAPER_A, PAPER_B = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.S))


def settings(pasted: dict[str, Any], **changes: dict[str, Any]) -> Settings:
    raw = copy.deepcopy(GPU | pasted)
    for section, values in changes.items():
        raw[section] = raw[section] | values
    return Settings.model_validate(raw)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("paper", {}),
        ("full", {"decode": {"block_length": None}}),
        ("dpls", {"policy": {"action": "dpls"}}),
        ("steered", {"decode": {"block_length": None}, "train": {"experts": 1, "expert_block": 32, "clip_eps": 0.2}}),
    ],
)
def test_paper_a_from_params_yaml_is_its_preset(name: str, changes: dict[str, Any]) -> None:
    found, wanted = settings(PAPER_A, **changes), grpo.preset(name, 10.0)
    assert plan_of(found.train, found.decode) == (wanted.plan, wanted.objective)
    policy = fresh_policy(found.policy, 4096, 0)
    assert policy.shape == wanted.shape == replace(PAPER, action=wanted.shape.action)
    assert sum(p.numel() for p in policy.parameters()) == 331_265
    assert expert_of(found.train) == wanted.expert == (Threshold(0.9) if name == "steered" else None)
    assert reference_for(found.train, policy) is None


@pytest.mark.parametrize(
    ("name", "rule", "value", "divergence", "shortlist"),
    [
        ("top_k", "top_k_random", 5, "kl", 5),
        ("max_confidence", "max_confidence", None, "ce", 0),
        ("softmax_confidence", "softmax_confidence", 0.05, "kl", 0),
    ],
)
def test_paper_b_from_params_yaml_is_its_preset(
    name: str, rule: str, value: float | None, divergence: str, shortlist: int
) -> None:
    found = settings(
        PAPER_B,
        policy={"shortlist": shortlist},
        distill={"reference": rule, "value": value},
        train={"reference": rule, "reference_value": value, "divergence": divergence, "record_share": 0.25},
    )
    wanted = upo.preset(name, 4096, heads=32, mlp_width=12288, record_share=0.25)
    assert plan_of(found.train, found.decode) == (wanted.plan, wanted.objective)
    assert isinstance(found.policy, Feature)
    assert FeatureShape(features=4096, **found.policy.model_dump(exclude={"kind"})) == wanted.shape
    assert reference_for(found.train, None) == reference_of(rule, value) == wanted.reference


# --- The map of equations ---------------------------------------------------------------------------------------------


def defined(folder: str) -> dict[str, set[str]]:
    """file -> dotted names of what it defines: functions, classes, their methods and fields, constants."""

    def names(body: list[ast.stmt], prefix: str) -> Iterator[str]:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield from names(node.body, f"{prefix}{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            yield from (prefix + target.id for target in targets if isinstance(target, ast.Name))

    files = {path.relative_to(ROOT): path for path in sorted((ROOT / folder).rglob("*.py"))}
    return {
        f"/{short}": set(names(ast.parse(path.read_text()).body, "." + ".".join(short.with_suffix("").parts) + "."))
        for short, path in files.items()
    }


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without the table's own head."""
    section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in section.splitlines()
        if line.startswith("| ")
    ][1:]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_every_equation_names_functions_and_tests_that_exist() -> None:
    functions, tests = set().union(*defined("components").values()), defined("tests")
    mapped = rows("Paper A") + rows("Paper B") + rows("Ours: coupled policies")
    assert len(mapped) > 45
    for what, _, function, test in mapped:
        assert quoted(function) and quoted(test), what
        for name in quoted(function):
            tail = "." + re.split(r"[^\w.]", name)[0]
            assert any(known.endswith(tail) for known in functions), (what, name)
        for name in quoted(test):
            file, _, wanted = name.split("[")[0].rpartition("::") if not name.endswith(".py") else (name, "", "")
            there = [known for path, known in tests.items() if path.endswith("/" + file if file else ".py")]
            assert there, (what, name)
            assert not wanted or any(k.endswith("." + wanted) for known in there for k in known), (what, name)


def test_every_switch_and_test_named_anywhere_exists() -> None:
    tests = defined("tests")
    known = {name.rsplit(".", 1)[-1] for names in tests.values() for name in names} | {Path(p).stem for p in tests}
    assert set(re.findall(r"\btest_\w+", TEXT)) <= known
    functions = set().union(*defined("components").values())
    switches = [name for row in rows("Where we deviate, and the switch back") for name in quoted(row[-1])]
    dotted = [re.split(r"[^\w.]", name)[0] for name in switches if re.match(r"\w+\.\w", name)]
    assert len(dotted) > 5
    for name in dotted:
        assert any(k.endswith("." + name) for k in functions), name
