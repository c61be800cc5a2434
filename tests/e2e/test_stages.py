"""The stages that a policy passes, called in this process at toy size, for the kinds of policy that the default
pipeline does not train: paper B's head pulled to its reference, one policy for several alphas. Without MLflow.

Each stage is watched: it opens no file of another stage that dvc.yaml does not name as its dependency.
"""

from __future__ import annotations

import copy
import csv
import inspect
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch
import yaml

from components.denoisers import embedded
from components.settings import Settings
from components.stages import report as reporting
from components.stages import train as training
from components.stages.common.cases import case_of
from components.stages.common.workspace import Workspace
from components.stages.distill import distill
from components.stages.evaluate import evaluate
from components.stages.export import export
from components.stages.headroom import headroom
from components.stages.influence import influence
from components.stages.prepare import prepare
from components.stages.rules import rules
from components.tasks.example import MASK
from components.tasks.sudoku import SudokuMany
from tests.doubles import Unwatched
from tests.graph import Cell, resolve, within

torch.set_num_threads(1)
pytestmark = pytest.mark.e2e
RAW: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8"))
QUOTAS = ("random", "left_to_right", "confidence", "margin", "entropy")
HEAD = {"kind": "feature", "heads": 2, "mlp_width": 16, "hidden": 1, "top_k": 3, "shortlist": 3}


def toy(**changes: Any) -> Settings:
    """The tiny profile in a second; one case of each group."""
    raw = copy.deepcopy(RAW)
    raw["profile"] = "toy"
    raw["data"]["counts"] = {"pretrain": 4, "train": 12, "tune": 4, "gate": 4, "test": 8}
    raw["models"]["mini-llada"]["dtype"] = "float32"
    raw["pretrain"] |= {"width": 16, "heads": 2}
    raw["influence"] |= {"chunks": 2, "prompts": 4, "states": 8, "probes": 2, "num_epochs": 1}
    raw["headroom"] = {"prompts": 2, "orders": 2, "cases": {"many": raw["headroom"]["cases"]["many"]}}
    raw["domain"]["tasks"] = {"sudoku_many": 1}
    raw["policy"] |= {"width": 8, "heads": 1, "mlp_width": 8}
    raw["distill"] |= {"iterations": 2, "prompts": 4, "micro_batch": 64}
    raw["train"] |= {"signal": "dense", "iterations": 2, "prompts": 3, "group": 3, "validate_every": 2, "save_every": 2}
    raw["sweep"] |= {
        "block_lengths": [None],
        "rules": {"threshold": [0.9]} | {name: [1, 4] if name == "confidence" else [1] for name in QUOTAS},
        "seeds": [0],
    }
    raw["evaluate"] = {"tasks": ["sudoku_many"], "gate_task": "sudoku_many"}
    raw["transfer"] = {"same": {"model": "mini-llada", "task": "sudoku_unique"}}
    raw["ood"] = {"related": raw["ood"]["related"]}
    for section, values in changes.items():
        raw[section] = values if "kind" in values else raw[section] | values
    return Settings.model_validate(raw)


class Watch:
    """What this process opens for reading, as long as ``files`` is a list."""

    files: list[str] | None = None

    def __call__(self, event: str, given: tuple[Any, ...]) -> None:
        if event == "open" and self.files is not None and isinstance(given[0], str | bytes):
            mode, flags = given[1], given[2]
            if not (set(mode or "r") & set("wax+") or flags & (os.O_WRONLY | os.O_RDWR)):
                self.files.append(os.fsdecode(given[0]))


WATCH = Watch()
sys.addaudithook(WATCH)


@contextmanager
def held_to(cell: Cell, root: Path, unread: set[str]) -> Iterator[None]:
    """Inside, files of other stages are opened only where they are dependencies of the cell, and all of these are but
    those in ``unread``."""
    WATCH.files = []
    try:
        yield
        opened = [Path(name) for name in WATCH.files]
    finally:
        WATCH.files = None
    names = {str(path.relative_to(root)) for path in opened if path.is_relative_to(root / "outputs")}
    names = {name for name in names if ".part" not in name and not any(within(name, out) for out in cell.outs)}
    deps = [dep for dep in cell.deps if within(dep, "outputs")]
    strange = [name for name in names if not any(within(name, dep) for dep in deps)]
    assert not strange, f"{cell.name} reads, but does not depend on: {strange}"
    idle = [dep for dep in deps if not any(within(name, dep) for name in names)]
    assert set(idle) == unread, f"{cell.name} depends on, but does not read: {idle}"


def through(root: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every stage with an untrained dLLM in place of pretrain's; the folder of the outputs."""
    workspace, cells = Workspace(root, "toy"), resolve(root / "graph", settings.model_dump(mode="json"))

    monkeypatch.setattr(training, "_tracker", lambda workspace, lines, state, begun: Unwatched(lines, state.iteration))
    monkeypatch.setattr(reporting, "show", lambda workspace: None)

    def run(stage: str, function: Callable[..., Any], **given: Any) -> None:
        wanted = inspect.signature(function).parameters
        sections = {name: getattr(settings, name) for name in wanted if name in Settings.model_fields}
        unread = {"report": {"outputs/toy/export"}}.get(stage, set())  # its card tells how that file is loaded
        if stage == "influence" and settings.policy.kind != "coupled":  # no other policy asks for a decode
            unread = {"outputs/toy/data/domain"}
        if stage.partition("@")[0] in ("evaluate", "gate", "transfer", "ood"):  # read where `variants` names it
            unread = {"outputs/toy/influence"}
        with held_to(cells[stage], root, unread):
            function(workspace, **sections | given)

    run("prepare", prepare)
    alphabet = "".join(sorted(set("".join(t.build().alphabet for t in settings.data.tasks.values()))))
    denoiser, encoder = embedded.build("llada", alphabet, embedded.Shape(16, 1, 2, 16, 64), seed=0)
    embedded.save(denoiser, encoder, workspace.outputs / "pretrain" / "mini-llada")
    workspace.write_json(
        {"source": None, "revision": None, "dtype": "float32"}, "pretrain", "mini-llada", "source.json"
    )
    run("headroom@many", headroom, case="many")
    run("influence", influence)
    run("distill", distill)
    run("train", training.train)
    # Stage rules depends on two of decode's settings alone.
    read = SimpleNamespace(cache=settings.decode.cache, end_of_text=settings.decode.end_of_text)
    task = settings.evaluate.gate_task
    for group, name, suffix in (
        ("evaluate", task, f"@{task}"),
        ("gate", "", ""),
        ("transfer", "same", "@same"),
        ("ood", "related", "@related"),
    ):
        case = case_of(settings, group, name)
        run(("rules" if group == "evaluate" else f"{group}-rules") + suffix, rules, case=case, decode=read)
        run(group + suffix, evaluate, case=case)
    run("export", export)
    run("report", reporting.report)
    return workspace.outputs


def table(path: Path) -> dict[str, dict[str, str]]:
    """setting -> row, of the trained policy."""
    with path.open(encoding="utf-8") as lines:
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
                "kl_coef": 0.1,
                "reference": "top_k_random",
                "reference_value": 3,
                "record_share": 0.5,
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
    found = table(outputs / "tables" / "evaluate-sudoku_many.csv")
    assert set(found) == {"mode", "sample"} and {float(row["nfe"]) for row in found.values()} == {16.0}
    parity = json.loads((outputs / "metrics" / "export.json").read_text())
    assert parity["texts"] == parity["equal_texts"] == 24


def test_texts_with_gaps_pass_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A domain whose rows bring their canvas, a sudoku with its clues: learned, evaluated, gated and exported."""
    source, paths = SudokuMany(min_clues=6, max_clues=10), dict[str, str]()
    for seed, (split, count) in enumerate({"train": 300, "test": 12}.items()):
        examples = [source.sample(index, seed) for index in range(count)]
        canvases = (example.prompt[1:].replace(".", MASK) for example in examples)
        rows = ({"prompt": e.prompt, "canvas": c, "answer": e.answer} for e, c in zip(examples, canvases, strict=True))
        paths[f"{split}_path"] = str(tmp_path / f"{split}.jsonl")
        Path(paths[f"{split}_path"]).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tasks = RAW["data"]["tasks"] | {"gaps": {"kind": "infill", "params": paths, "canvas": 16}}
    counts = {"pretrain": 4, "train": 12, "tune": 4, "gate": 4, "test": 8}
    settings = toy(
        data={"tasks": tasks, "counts": counts},
        domain={"tasks": {"gaps": 1}},
        evaluate={"tasks": ["gaps"], "gate_task": "gaps"},
    )
    outputs = through(tmp_path, settings, monkeypatch)
    for case in ("evaluate-gaps", "gate"):
        found = table(outputs / "tables" / f"{case}.csv")
        assert set(found) == {"mode", "sample"} and all(1 <= float(row["nfe"]) <= 10 for row in found.values())
    parity = json.loads((outputs / "metrics" / "export.json").read_text())
    assert parity["texts"] == parity["equal_texts"] > 0


@pytest.fixture(scope="module")
def several_alphas(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Settings]:
    """A root with the outputs of a policy for two alphas, and its settings."""
    root, settings = (
        tmp_path_factory.mktemp("alphas"),
        toy(train={"alpha": [0.3, 5.0]}, decode={"alpha": 5.0, "frontier": 3}),
    )
    with pytest.MonkeyPatch.context() as patch:
        through(root, settings, patch)
    return root, settings


def test_one_policy_for_several_alphas_passes_every_stage(several_alphas: tuple[Path, Settings]) -> None:
    """Judged at each alpha, gated and served at one, which the file holds beside its input."""
    outputs = several_alphas[0] / "outputs" / "toy"
    described = json.loads((outputs / "train" / "policy" / "policy.json").read_text())
    assert described["shape"]["alphas"] == [0.3, 5.0]
    assert json.loads((outputs / "distill" / "policy" / "policy.json").read_text())["shape"]["alphas"] == []
    assert set(table(outputs / "tables" / "evaluate-sudoku_many.csv")) == {"mode", "sample", "alpha=0.3"}
    assert set(table(outputs / "tables" / "gate.csv")) == {"mode", "sample"}
    assert set(json.loads((outputs / "metrics" / "evaluate-sudoku_many.json").read_text())) == {
        "learned_mode",
        "learned_sample",
        "learned_alpha=0.3",
        "distilled_mode",
    }
    assert "unmasking-policy-toy" in (outputs / "report" / "card.md").read_text(encoding="utf-8")
    graph = onnx.load(outputs / "export" / "policy.onnx")
    said = {entry.key: entry.value for entry in graph.metadata_props}
    assert "alpha_B" in {value.name for value in graph.graph.input}
    masked = json.loads((outputs / "export" / "state.json").read_text())["masked_BL"][0]
    last = max(place for place, is_masked in enumerate(masked) if not is_masked)
    assert sum(masked[:last]) < 3  # masks before a committed position: fewer than the frontier
    assert said["alpha"] == "5.0" and json.loads(said["unmask.policy"])["speed"] == 5.0
    parity = json.loads((outputs / "metrics" / "export.json").read_text())
    assert parity["texts"] == parity["equal_texts"] == 24


def test_what_a_removed_case_left_behind_is_not_reported(
    several_alphas: tuple[Path, Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC leaves the files of a stage that there is no longer where they are."""
    root, settings = several_alphas
    outputs = Path(shutil.copytree(root / "outputs", tmp_path / "outputs")) / "toy"
    shown = (outputs / "report" / "table.md").read_text(encoding="utf-8")
    assert "sudoku_unique" in shown and "latin_square" in shown
    monkeypatch.setattr(reporting, "show", lambda workspace: None)
    sections = (settings.domain, settings.decode, settings.headroom, settings.evaluate)
    reporting.report(Workspace(tmp_path, "toy"), *sections, {}, {})
    assert {path.name for path in (outputs / "tables").iterdir()} >= {"ood-related.csv", "transfer-same.csv"}
    shown = (outputs / "report" / "table.md").read_text(encoding="utf-8")
    assert "sudoku_many" in shown and "sudoku_unique" not in shown and "latin_square" not in shown
