"""docs/papers.md keeps its word: the functions and tests that it maps equations to exist; the sections that it tells to
paste have the papers' hyperparameters, and train."""

from __future__ import annotations

import ast
import copy
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.policies.confidence import PAPER, ConfidencePolicy
from components.policies.feature import FeaturePolicy, FeatureShape
from components.policies.heuristics import Threshold
from components.settings import Feature, Settings
from components.stages.common.models import reference_of
from components.stages.influence import fresh_policy
from components.stages.train import expert_of, plan_of, reference_for
from components.trainers.distill import DistillPlan, imitate
from components.trainers.plan import Objective, Plan
from components.trainers.reinforce import Method, optimizer_for, reinforce
from tests.toy_domain import KeyFirst

ROOT = Path(__file__).parents[2]
GPU: dict[str, Any] = yaml.safe_load((ROOT / "profiles" / "gpu.yaml").read_text(encoding="utf-8"))
TEXT = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
PAPER_A, PAPER_B = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.S))


def settings(pasted: dict[str, Any], **changes: dict[str, Any]) -> Settings:
    raw = copy.deepcopy(GPU | pasted)
    for section, values in changes.items():
        raw[section] = raw[section] | values
    return Settings.model_validate(raw)


VARIANTS_A: dict[str, dict[str, dict[str, Any]]] = {
    "blocks": {},
    "full diffusion": {"decode": {"block_length": None}},
    "dpls": {"policy": {"action": "dpls"}},
    "steered": {"decode": {"block_length": None}, "train": {"experts": 1, "expert_block": 32, "clip_eps": 0.2}},
}
VARIANTS_B: dict[str, tuple[str, float | None, str, int]] = {  # rule, its number, divergence, shortlist
    "top_k": ("top_k_random", 5, "kl", 5),
    "max_confidence": ("max_confidence", None, "ce", 0),
    "softmax_confidence": ("softmax_confidence", 0.05, "kl", 0),
}


def paper_b(name: str) -> Settings:
    rule, value, divergence, shortlist = VARIANTS_B[name]
    return settings(
        PAPER_B,
        policy={"shortlist": shortlist},
        distill={"reference": rule, "value": value},
        train={"reference": rule, "reference_value": value, "divergence": divergence, "record_share": 0.25},
    )


def test_paper_a_has_the_published_hyperparameters() -> None:
    """936 iterations are one epoch over 14,973 prompts, 16 prompts x 8 members and 2 optimizer steps each."""
    found = settings(PAPER_A)
    plan, objective = plan_of(found.train, found.decode)
    assert plan == Plan(
        iterations=math.ceil(14_973 / 16),
        prompts=16,
        group=8,
        learning_rate=3e-5,
        seed=123,
        block_length=32,
        warmup=100,
        min_lr_ratio=0.0,
        weight_decay=0.1,
        clip_norm=0.2,
        force_commit=False,
        step_limit="block",
        rollout_rows=128,
        expert_block=None,
    )
    assert objective == Objective(
        alpha=10.0, reward="multiplicative", signal="correct", clip_eps=0.5, num_epochs=2, weighting="row"
    )


@pytest.mark.parametrize("name", VARIANTS_A)
def test_paper_a_has_the_published_policy(name: str) -> None:
    found = settings(PAPER_A, **VARIANTS_A[name])
    policy = fresh_policy(found.policy, 4096, 0)
    assert policy.shape == replace(PAPER, action="dpls" if name == "dpls" else "bernoulli")
    assert sum(p.numel() for p in policy.parameters()) == 331_265
    assert expert_of(found.train) == (Threshold(0.9) if name == "steered" else None)
    assert reference_for(found.train, policy) is None


@pytest.mark.parametrize("name", VARIANTS_B)
def test_paper_b_has_the_published_hyperparameters(name: str) -> None:
    """3,500 optimizer steps of 16 epochs; the learning rate is constant after .056 of them."""
    rule, value, divergence, shortlist = VARIANTS_B[name]
    found = paper_b(name)
    plan, objective = plan_of(found.train, found.decode)
    assert plan == Plan(
        iterations=math.ceil(3500 / 16),
        prompts=24,
        group=6,
        learning_rate=3e-6,
        seed=0,
        block_length=None,
        warmup=12,
        min_lr_ratio=1.0,
        weight_decay=0.1,
        clip_norm=0.2,
        temperature=0.8,
        anneal=False,
    )
    assert {plan.temperature_at(number) for number in range(plan.iterations)} == {0.8}
    wanted = Objective(alpha=0.0, signal="dense", clip_eps=0.5, num_epochs=16, weighting="constant", kl_coef=1e-4)
    # Gradients of micro batches are added up: one that fits a card is the same update.
    assert objective == replace(wanted, divergence=divergence, record_share=0.25, micro_batch=64)
    assert isinstance(found.policy, Feature)
    shape = FeatureShape(features=4096, **found.policy.model_dump(exclude={"kind"}))
    assert shape == FeatureShape(4096, heads=32, mlp_width=12288, hidden=3, top_k=8, shortlist=shortlist)
    assert reference_for(found.train, FeaturePolicy(FeatureShape(8, heads=2))) == reference_of(rule, value)


@pytest.mark.parametrize("name", VARIANTS_A)
def test_paper_a_trains(key_first: KeyFirst, name: str) -> None:
    found = settings(PAPER_A, **VARIANTS_A[name])
    plan, objective = plan_of(found.train, found.decode)
    plan = replace(plan, iterations=1, prompts=3, group=2, block_length=2, expert_block=None)
    policy = ConfidencePolicy(replace(PAPER, width=16, mlp_width=16, action=found.policy.action))
    method, optimizer = Method(plan, objective, None, expert_of(found.train)), optimizer_for(policy, plan)
    ((_, metrics),) = reinforce(policy, optimizer, key_first.denoiser(), key_first.prompts(), method)
    assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("name", VARIANTS_B)
def test_paper_b_trains_one_position_per_step(key_first: KeyFirst, name: str) -> None:
    """Taught by its reference first, but for Top-K, whose fresh policy is near enough."""
    found = paper_b(name)
    plan, objective = plan_of(found.train, found.decode)
    plan = replace(plan, iterations=1, prompts=3)
    policy = FeaturePolicy(FeatureShape(16, heads=2, mlp_width=8, shortlist=found.policy.shortlist))
    reference = reference_for(found.train, policy)
    assert reference is not None
    if name != "top_k":
        first = DistillPlan(iterations=2, prompts=4, micro_batch=64, learning_rate=1e-3, block_length=None, seed=0)
        imitate(policy, reference, key_first.denoiser(), key_first.prompts(), first, lambda number, metrics: None)
    method, optimizer = Method(plan, objective, reference), optimizer_for(policy, plan)
    ((_, metrics),) = reinforce(policy, optimizer, key_first.denoiser(), key_first.prompts(), method)
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["decode/nfe"] == 4 and policy.temperature == 1.0


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
