"""The stages that a policy passes, called in this process at toy size, for the kinds of policy that the default
pipeline does not train: paper B's head pulled to its reference, one policy for several alphas. Without MLflow, DVC."""

from __future__ import annotations

import copy
import csv
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import yaml
from components.stages.transfer import ood

from components.denoisers import embedded
from components.settings import Settings
from components.stages import train as training
from components.stages.common.workspace import Workspace
from components.stages.distill import distill
from components.stages.evaluate import evaluate
from components.stages.export import export
from components.stages.prepare import prepare
from components.tracking.tracker import JsonlTracker

torch.set_num_threads(1)
pytestmark = pytest.mark.e2e
RAW: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())["profiles"]["tiny"]
HEAD = {"kind": "feature", "heads": 2, "inner": 16, "hidden": 1, "top_k": 3, "shortlist": 3}


def toy(**changes: Any) -> Settings:
    """The tiny profile in a second."""
    raw = copy.deepcopy(RAW)
    raw["data"]["counts"] = {"pretrain": 4, "train": 12, "tune": 4, "gate": 4, "test": 8}
    raw["models"]["llada"]["dtype"] = "float32"
    raw["pretrain"] |= {"width": 16, "heads": 2}
    raw["domain"]["tasks"] = {"sudoku_many": 1}
    raw["policy"] |= {"width": 8, "heads": 1, "inner": 8}
    raw["distill"] |= {"rounds": 2, "prompts": 4, "pairs": 64}
    raw["train"] |= {"signal": "dense", "rounds": 2, "prompts": 3, "group": 3, "validate_every": 2, "save_every": 2}
    raw["evaluate"] |= {
        "tasks": ["sudoku_many"],
        "block_lengths": [None],
        "thresholds": [0.9],
        "factors": [],
        "gammas": [],
        "per_step": [4],
        "seeds": [0],
    }
    for section, values in changes.items():
        raw[section] = values if "kind" in values else raw[section] | values
    return Settings.model_validate(raw)


def through(root: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """prepare, an untrained dLLM, distill, train, evaluate, export; the folder of the outputs."""
    s, workspace = settings, Workspace(root, "toy")

    class Unwatched(JsonlTracker):
        run_id = "none"

    monkeypatch.setattr(training, "_tracker", lambda workspace, lines, facts, begun: Unwatched(lines, facts["round"]))
    prepare(workspace, s.data)
    alphabet = "".join(sorted(set("".join(t.build().alphabet for t in s.data.tasks.values()))))
    denoiser, encoder = embedded.build("llada", alphabet, 16, layers=1, heads=2, inner=16, positions=64, seed=0)
    embedded.save(denoiser, encoder, workspace.outputs / "pretrain" / "llada")
    distill(workspace, s.data, s.models, s.domain, s.policy, s.decode, s.distill)
    training.train(workspace, s.data, s.models, s.domain, s.decode, s.train)
    evaluate(workspace, s.data, s.models, s.domain, s.decode, s.evaluate)
    export(workspace, s.data, s.models, s.domain, s.decode)
    return workspace.outputs


def table(path: Path) -> dict[str, dict[str, str]]:
    """setting -> row, of the trained policy."""
    with path.open() as lines:
        return {row["setting"]: row for row in csv.DictReader(lines) if row["family"] == "learned"}


def test_paper_b_s_head_passes_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Top-K with KL: taught by the reference that it already is, pulled to it, drawn at .8, half of the steps kept."""
    rule = {"reference": "top_k_random", "value": 3}
    outputs = through(
        tmp_path,
        toy(
            policy=HEAD,
            distill=rule,
            train={
                "objective": "upo",
                "alpha": 0.0,
                "pull": 0.1,
                "reference": "top_k_random",
                "reference_value": 3,
                "keep_steps": 0.5,
                "temperature": 0.8,
                "anneal": False,
            },
        ),
        monkeypatch,
    )
    described = json.loads((outputs / "train" / "policy" / "policy.json").read_text())
    assert described["kind"] == "feature" and described["shape"]["shortlist"] == 3
    assert json.loads((outputs / "metrics" / "distill.json").read_text())["loss"] == pytest.approx(0, abs=1e-5)
    one, other = ((outputs / stage / "policy" / "policy.safetensors").read_bytes() for stage in ("distill", "train"))
    assert one != other
    found = table(outputs / "evaluate" / "test.csv")
    assert set(found) == {"mode", "sample"} and {float(row["nfe"]) for row in found.values()} == {16.0}
    parity = json.loads((outputs / "metrics" / "export.json").read_text())
    assert parity["texts"] == parity["equal_texts"] == 24


def test_one_policy_for_several_alphas_passes_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Judged at each alpha, gated and served at one, which the file holds beside its input."""
    outputs = through(tmp_path, toy(train={"alpha": [0.3, 5.0]}, decode={"alpha": 5.0}), monkeypatch)
    described = json.loads((outputs / "train" / "policy" / "policy.json").read_text())
    assert described["shape"]["alphas"] == [0.3, 5.0]
    assert json.loads((outputs / "distill" / "policy" / "policy.json").read_text())["shape"]["alphas"] == []
    assert set(table(outputs / "evaluate" / "test.csv")) == {"mode", "sample", "alpha=0.3"}
    assert set(table(outputs / "evaluate" / "gate.csv")) == {"mode", "sample"}
    assert set(json.loads((outputs / "metrics" / "evaluate.json").read_text())["sudoku_many"]) == {
        "learned_mode",
        "learned_sample",
        "learned_alpha=0.3",
        "distilled_mode",
    }
    graph = onnx.load(outputs / "export" / "policy.onnx")
    said = {entry.key: entry.value for entry in graph.metadata_props}
    assert "alpha_B" in {value.name for value in graph.graph.input}
    assert said["alpha"] == "5.0" and json.loads(said["unmask.policy"])["speed"] == 5.0
    parity = json.loads((outputs / "metrics" / "export.json").read_text())
    assert parity["texts"] == parity["equal_texts"] == 24


def test_an_ood_case_that_is_not_asked_for_leaves_an_empty_table_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    s = toy(ood={"near": None})
    workspace = Workspace(tmp_path, "toy")
    assert ood(workspace, s.data, s.models, s.domain, s.decode, s.evaluate, s.ood, "near") == {}
    assert not (workspace.outputs / "ood" / "near.csv").read_text().strip()
    assert json.loads((workspace.outputs / "metrics" / "ood-near.json").read_text()) == {}
    assert "asks for no task near" in capsys.readouterr().out
