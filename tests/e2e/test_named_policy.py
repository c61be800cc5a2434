"""Train, gate and export name one policy by hash, and a promotion judges that one: the stages themselves, toy size."""

from __future__ import annotations

import copy
import inspect
import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import yaml

from components.commands.evidence import Pick, read_evidence
from components.commands.promote import promote
from components.core.errors import DataError, ParityError, PromotionRefused
from components.core.files import read_json, write_json
from components.denoisers import embedded
from components.export import OnnxPolicy
from components.policies import store
from components.settings import Settings
from components.stages import train as training
from components.stages.common.cases import case_of
from components.stages.common.workspace import Workspace
from tests.doubles import Unwatched

torch.set_num_threads(1)
pytestmark = pytest.mark.e2e
RAW: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8"))
POLICY = {
    "kind": "confidence",
    "inputs": ["log_odds", "entropy"],
    "top_k": 0,
    "hidden_states": False,
    "width": 8,
    "heads": 1,
    "mlp_width": 8,
    "period": 100.0,
    "bias": -2.0,
    "where": "masked",
    "action": "bernoulli",
    "rounded": False,
}


def toy(**decode: Any) -> Settings:
    """The tiny profile in seconds: one task, few prompts, a policy that is served at one of two alphas."""
    raw = copy.deepcopy(RAW)
    raw["data"]["counts"] = {"pretrain": 4, "train": 12, "tune": 4, "gate": 4, "test": 4}
    raw["pretrain"] |= {"width": 16, "heads": 2}
    raw["domain"]["tasks"] = {"sudoku_many": 1}
    raw["policy"] = POLICY
    raw["distill"] |= {"iterations": 1, "prompts": 4, "micro_batch": 64}
    raw["train"] |= {
        "signal": "dense",
        "iterations": 1,
        "prompts": 2,
        "group": 2,
        "validate_every": 1,
        "alpha": [0.3, 5.0],
    }
    raw["evaluate"] = {"tasks": ["sudoku_many"], "gate_task": "sudoku_many"}
    raw["decode"] |= {"alpha": 5.0} | decode
    return Settings.model_validate(raw)


def run(workspace: Workspace, settings: Settings, name: str, group: str = "") -> Any:
    """A stage as the command line calls it: with the sections that its signature names."""
    function = getattr(import_module(f"components.stages.{name}"), name)
    sections = {p: getattr(settings, p) for p in inspect.signature(function).parameters if hasattr(settings, p)}
    return function(workspace, **sections, **({"case": case_of(settings, group)} if group else {}))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the outputs of every stage up to the export; take a copy."""

    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr(training, "_tracker", lambda workspace, lines, state, begun: Unwatched(lines, state.iteration))
        through(Workspace(root, "tiny"), toy())
    return root


def through(made: Workspace, settings: Settings) -> None:
    run(made, settings, "prepare")
    alphabet = "".join(sorted(set("".join(t.build().alphabet for t in settings.data.tasks.values()))))
    denoiser, encoder = embedded.build("llada", alphabet, embedded.Shape(16, 1, 2, 16, 64), seed=0)
    folder = made.outputs / "pretrain" / settings.domain.model
    embedded.save(denoiser, encoder, folder)
    write_json(folder / "source.json", {"source": None, "revision": None, "dtype": "float32"})
    for name in ("influence", "distill", "train"):
        run(made, settings, name)
    run(made, settings, "rules", "gate")
    run(made, settings, "evaluate", "gate")
    run(made, settings, "export")


@pytest.fixture
def workspace(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return Workspace(tmp_path, "tiny")


def test_the_stages_name_one_policy_and_a_promotion_takes_no_other(workspace: Workspace) -> None:
    outputs, pick = workspace.outputs, Pick.of(toy())
    trained = store.content_hash(outputs / "train" / "policy")
    for folder in ("train", "evaluate/gate", "export"):
        assert read_json(outputs / folder / "run.json")["policy_hash"] == trained
    assert OnnxPolicy(outputs / "export" / "policy.onnx").metadata["policy_hash"] == trained
    evidence = read_evidence(outputs, pick)
    assert (evidence.canvas, evidence.alpha, evidence.policy.correct_P.size) == (16, 5.0, 4)
    assert {cell.rule for cell in evidence.heuristics} == pick.rules
    verdict = promote(outputs, workspace.root, pick, dry_run=True)
    assert verdict.figures["accuracy"] == evidence.policy.correct_P.mean()

    # Another alpha, `dvc repro gate`: the exported file is still served at the old one.
    other = toy(alpha=0.3)
    run(workspace, other, "evaluate", "gate")
    with pytest.raises(PromotionRefused, match=r"stage export decoded with alpha=5\.0, .* 0\.3\. Run"):
        read_evidence(outputs, Pick.of(other))
    before = evidence.identity
    run(workspace, other, "export")
    after = read_evidence(outputs, Pick.of(other))
    assert after.identity != before, "the file decodes otherwise: it is another version"

    # Another training, `dvc repro gate`: its results are not those of the old file.
    policy = store.load(outputs / "train" / "policy")
    with torch.no_grad():
        next(policy.parameters()).add_(0.1)
    store.save(policy, outputs / "train" / "policy")
    with pytest.raises(PromotionRefused, match=r"stage train names policy .*Run `dvc repro train`"):
        read_evidence(outputs, Pick.of(other))
    write_json(
        outputs / "train" / "run.json",
        read_json(outputs / "train" / "run.json") | {"policy_hash": store.content_hash(outputs / "train" / "policy")},
    )
    with pytest.raises(PromotionRefused, match=r"stage gate names policy .*Run `dvc repro gate`"):
        read_evidence(outputs, Pick.of(other))
    run(workspace, other, "evaluate", "gate")
    with pytest.raises(PromotionRefused, match=r"stage export names policy .*Run `dvc repro export`"):
        read_evidence(outputs, Pick.of(other))
    run(workspace, other, "export")
    assert read_evidence(outputs, Pick.of(other)).identity not in (before, after.identity)


def test_sampled_results_keep_their_seeds_for_the_utility(workspace: Workspace) -> None:
    sampled = toy(choose="sample")
    run(workspace, sampled, "evaluate", "gate")
    run(workspace, sampled, "export")
    evidence = read_evidence(workspace.outputs, Pick.of(sampled))
    seeds = evidence.policy.seeds_2SP
    assert evidence.policy.choose == "sample" and seeds.shape == (2, 3, 4)
    assert all(not result.seeds_2SP.size for result in evidence.heuristics), "deterministic rules are decoded once"


def test_a_file_that_fails_parity_does_not_take_its_name(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither over an older file, nor where there is none; nothing else is left there."""
    import components.export as exporting

    def broken(policy: Any, path: Path, metadata: Any) -> None:
        other = copy.deepcopy(policy)
        with torch.no_grad():
            for weights in other.parameters():
                weights.add_(0.5)
        whole(other, path, metadata)

    whole = exporting.export_policy
    monkeypatch.setattr(exporting, "export_policy", broken, raising=False)
    folder = workspace.outputs / "export"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ParityError):
        run(workspace, toy(), "export")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    read_evidence(workspace.outputs, Pick.of(toy()))
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(ParityError):
        run(workspace, toy(), "export")
    assert not [*folder.iterdir()]
    with pytest.raises(DataError, match=r"export/run\.json is not there"):
        read_evidence(workspace.outputs, Pick.of(toy()))


def test_a_file_that_was_torn_after_its_export_is_refused(workspace: Workspace) -> None:
    path = workspace.outputs / "export" / "policy.onnx"
    graph = onnx.load(path)
    graph.graph.initializer[0].raw_data = bytes(len(graph.graph.initializer[0].raw_data))
    onnx.save(graph, path)
    with pytest.raises(PromotionRefused, match=r"is not what stage export wrote\. Run `dvc repro export`"):
        read_evidence(workspace.outputs, Pick.of(toy()))
    assert json.loads((workspace.outputs / "export" / "run.json").read_text(encoding="utf-8"))["file_hash"]
