"""The sections that docs/papers.md tells to paste are the papers' presets, and so are the variants that it names."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.policies.confidence import PAPER
from components.policies.feature import FeatureShape
from components.policies.heuristics import Threshold
from components.settings import Feature, Settings
from components.stages.decoding import reference_of
from components.stages.distill import fresh_policy
from components.stages.train import expert_of, plan_of, reference_for
from components.trainers import grpo, upo

ROOT = Path(__file__).parents[2]
GPU: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())["profiles"]["gpu"]
PAPER_A, PAPER_B = (yaml.safe_load(block) for block in
                    re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "papers.md").read_text(), re.S))  # fmt: skip


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
        ("steered", {"decode": {"block_length": None}, "train": {"experts": 1, "expert_block": 32, "clip": 0.2}}),
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
        PAPER_B, policy={"shortlist": shortlist}, distill={"reference": rule, "value": value},
        train={"reference": rule, "reference_value": value, "divergence": divergence, "keep_steps": 0.25},
    )  # fmt: skip
    wanted = upo.preset(name, 4096, heads=32, inner=12288, keep_steps=0.25)
    assert plan_of(found.train, found.decode) == (wanted.plan, wanted.objective)
    assert isinstance(found.policy, Feature)
    assert FeatureShape(features=4096, **found.policy.model_dump(exclude={"kind"})) == wanted.shape
    assert reference_for(found.train, None) == reference_of(rule, value) == wanted.reference
