"""A user's own policy or dLLM is named by import path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from components.commands.resolve import candidate
from components.core.errors import CheckpointError, SettingsError
from components.core.imports import is_import_path, named
from components.settings import read
from components.stages.common.models import open_denoiser
from components.stages.common.workspace import Workspace
from tests.messages import has_remedy

ROOT = Path(__file__).parents[2]
OWN = """
from unmask_policies.denoisers.formula import FormulaDenoiser
from unmask_policies.policies.heuristics import Threshold
import torch

class Mine(Threshold):
    def __init__(self):
        super().__init__(0.25)

def sound():
    weight = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    def formula(canvas):
        seen = torch.nn.functional.one_hot(canvas.ids_BT[:, canvas.start:], 5).float()
        seen = seen * canvas.attend_BT[:, canvas.start:, None]
        return seen @ weight + seen.sum(1, keepdim=True) @ weight.T
    return FormulaDenoiser(formula, 5), "encoder"

def deaf():
    return FormulaDenoiser(lambda canvas: torch.zeros(*canvas.ids_BT[:, canvas.start:].shape, 5), 5), "encoder"
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    (tmp_path / "my_own_module.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return Workspace(tmp_path, "tiny")


def test_a_policy_of_a_users_own_is_a_candidate(place: Workspace) -> None:
    settings = read(ROOT / "params.yaml")
    assert cast(Any, candidate("my_own_module:Mine", place, settings, "mode").policy).threshold == 0.25


@pytest.mark.parametrize("path", ["my_own_module:Absent", "no_such_module:Mine"])
def test_what_cannot_be_imported_is_named(place: Workspace, path: str) -> None:
    with pytest.raises(SettingsError, match=path) as refused:
        named(path)
    assert has_remedy(str(refused.value))


def test_a_dllm_that_ignores_its_canvas_is_refused(place: Workspace) -> None:
    folder = place.outputs / "pretrain" / "mine"
    folder.mkdir(parents=True)
    source = {"source": "my_own_module:deaf", "revision": None, "dtype": "float32"}
    (folder / "source.json").write_text(json.dumps(source), encoding="utf-8")
    with pytest.raises(CheckpointError, match="my_own_module:deaf"):
        open_denoiser(place, "mine")


@pytest.mark.parametrize(
    ("text", "is_one"), [("a.b:C", True), ("threshold:0.9", False), ("models:/x@y", False), ("a/b:c", False)]
)
def test_import_paths_are_told_from_other_names(text: str, is_one: bool) -> None:
    assert is_import_path(text) == is_one
