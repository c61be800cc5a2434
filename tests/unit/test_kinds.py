"""What is read of the outputs' files is of its type, and each place that a stage writes to is tried before its work."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from components.commands import evidence
from components.core import files
from components.core.errors import DataError
from components.evaluation.evidence import Evidence
from components.reports import boards, headroom
from components.settings import read
from components.stages.common.cases import EvalCase
from components.stages.common.runfile import RunRecord, content_hash
from components.stages.common.workspace import Workspace
from components.stages.rules import rule_results, sources
from components.tracking import publish, registry
from tests import outputs

SETTINGS = read(Path(__file__).parents[2] / "params.yaml")

RECORD: dict[str, Any] = {
    "profile": "tiny",
    "stage": "train",
    "settings": {"train": {"alpha": 2.0, "seed": 1}, "decode": {"choose": "mode"}},
    "commit": "c",
    "dirty": False,
    "versions": {"torch": "2"},
    "dependencies": {"data": "hash"},
    "identity": "i",
    "started": "2026-11-28T05:10:07.781+00:00",
    "metrics": {"reward": 0.5},
    "seconds": 1.5,
    "mlflow_run_id": "r",
    "policy_hash": "p",
    "prompts_hash": "q",
    "file_hash": "f",
}
ORDER = {"random": 0.5, "best_of_random": 1.0, "surest_first": 0.9, "critical": 0.0}
SPEED = {"best": 1.0, "saturates_at_nfe": 4.5, "at_half": 0.5, "critical": 1.0}
HEADROOM: dict[str, Any] = {
    "model": "m",
    "task": "t",
    "order": ORDER,
    "learned_order": {"accuracy": 1.0, "gain": 0.5, "gain_low": 0.25, "gain_high": 0.75},
    "speed": SPEED,
    "dependence": {"oracle_at_half": 0.75, "share_of_loss": 0.5, "tc_per_step": 0.25},
}
DECODE: dict[str, Any] = {
    "task": "t",
    "family": "learned",
    "setting": "mode",
    "prompt": "p",
    "correct": 1.0,
    "nfe": 3,
    "order": [0, 1],
    "tokens": ["a", "b"],
    "view": {"alone": [1.0, None], "taken": [0], "shift": [[0.0, 1.0], [1.0, 0.0]]},
}
# What is read of a file -> an object as it is written, and the keys of which any type will do.
KINDS: dict[str, tuple[Any, dict[str, Any], set[str]]] = {
    "run.json": (RunRecord, RECORD, {"settings.train", "settings.decode", "metrics.reward"}),
    "run.json as MLflow gets it": (
        publish.Trained,
        RECORD,
        set(RECORD) - {"profile", "settings", "dependencies", "started", "seconds", "mlflow_run_id"}
        | {"settings.decode", "versions.torch", "metrics.reward"},
    ),
    "run.json of a promotion": (
        evidence.Made,
        RECORD,
        set(RECORD) - {"profile", "settings", "policy_hash", "prompts_hash", "file_hash"}
        | {"settings.train.seed", "settings.decode.choose", "versions.torch", "dependencies.data", "metrics.reward"},
    ),
    "headroom": (headroom.Case, HEADROOM, set()),
    "decodes.jsonl": (boards.Stored, DECODE, {"view.alone.0", "view.taken.0", "view.shift.0"}),
    "metrics.jsonl": (dict[str, float | None], {"step": 1, "reward/mean": 0.5, "policy/kl": None}, set()),
}


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every value inside, of lists the first."""
    inside: list[tuple[str | int, Any]] = list(value.items()) if isinstance(value, dict) else []
    inside += list(enumerate(value))[:1] if isinstance(value, list) else []
    for key, part in inside:
        yield (*path, key)
        yield from places(part, (*path, key))


@pytest.mark.parametrize("name", KINDS)
def test_a_value_of_another_type_is_refused_by_file_and_place(name: str, tmp_path: Path) -> None:
    kind, whole, free = KINDS[name]
    path, found = tmp_path / "file.json", 0
    path.write_text(json.dumps(whole), encoding="utf-8")
    assert files.read_json(path, kind=kind) == whole
    for place in places(whole):
        dotted = ".".join(map(str, place))
        if any(dotted == key or dotted.startswith(f"{key}.") for key in free):
            continue
        changed = copy.deepcopy(whole)
        target: Any = changed
        for key in place[:-1]:
            target = target[key]
        target[place[-1]] = [{"another": "type"}] if isinstance(target[place[-1]], dict) else {"another": ["type"]}
        path.write_text(json.dumps(changed), encoding="utf-8")
        with pytest.raises(DataError, match=rf"file\.json: {dotted}.* is of another type.*Run `dvc repro`"):
            files.read_json(path, kind=kind)
        found += 1
    assert found


def test_a_headroom_file_of_an_older_version_is_refused_by_what_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "many.json"
    for missing in ("learned_order", "dependence"):
        path.write_text(json.dumps({k: v for k, v in HEADROOM.items() if k != missing}), encoding="utf-8")
        with pytest.raises(DataError, match=rf"many\.json: {missing} is of another type, or missing.*Run `dvc repro`"):
            files.read_json(path, kind=headroom.Case)


@pytest.mark.parametrize("number", ["1e400", "-1e400", "NaN", "Infinity", "-Infinity"])
def test_a_number_that_no_json_has_is_refused_where_it_stands(number: str, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(f'{{"accuracy": 0.5}}\n{{"accuracy": {number}}}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"line 2 is not JSON .*Run `dvc repro`"):
        files.read_lines(path)
    with pytest.raises(ValueError, match="is no JSON number"):
        files.parse_json(number)


@pytest.mark.parametrize("step", ["0.5", "true", "null", '"1"', "1" + "0" * 400, str(2**63)])
def test_a_step_of_a_curve_that_is_no_whole_number_is_refused(step: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": {step}, "reward/mean": 0.5}}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"metrics\.jsonl.*Run `dvc repro`"):
        files.read_curve(path)


def test_a_figure_that_is_not_known_is_left_out_of_mlflow(tmp_path: Path) -> None:
    files.write_json(tmp_path / "result" / "gate.json", {"score": 0.2, "low": math.nan})
    assert publish.results(tmp_path) == {"result/gate/score": 0.2}


@pytest.mark.parametrize(
    "change",
    [
        {"canvas": "16"},
        {"canvas": None},
        {"alpha": [2.0]},
        {"policy": {"correct": [10**400]}},
        {"heuristics": [{"family": ["threshold"]}]},
        {"heuristics": [{"masks": [0]}]},
    ],
    ids=json.dumps,
)
def test_evidence_of_a_champion_with_values_of_another_type_is_none(
    change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The champion is decoded again then; an error here would end every later promotion."""
    policy, (rule, *_) = outputs.results()[2], outputs.results()
    stored = Evidence("i", "sudoku", "p", policy, (rule,), outputs.CANVAS, 2.0).to_json()
    version: Any = SimpleNamespace(tags={"identity": "i"})
    monkeypatch.setattr(registry, "_stored_evidence", lambda client, version: stored)
    client: Any = None
    loaded = registry.load_evidence(client, version)
    assert loaded is not None and json.dumps(loaded.to_json()) == json.dumps(stored)  # a NaN equals no other one
    for name, value in change.items():
        if isinstance(value, dict):
            stored[name] |= value
        elif name == "heuristics":
            stored[name] = [stored[name][0] | value[0]]
        else:
            stored[name] = value
    assert registry.load_evidence(client, version) is None


@pytest.mark.parametrize(
    "change", [{"seconds": 1e300}, {"seconds": -1e300}, {"started": "9999-12-31T23:59:59+00:00"}], ids=json.dumps
)
def test_a_run_that_ended_at_no_date_is_refused_before_mlflow_is_asked(change: dict[str, Any], tmp_path: Path) -> None:
    files.write_json(tmp_path / "train" / "run.json", RECORD | change)
    with pytest.raises(DataError, match=r"run\.json holds what no stage writes.*Run `dvc repro`"):
        publish.publish(tmp_path, tmp_path)
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("stage", "part", "blocked"),
    [
        ("prepare", "", "data"),
        ("pretrain", "mini-llada", "pretrain/mini-llada"),
        ("rules", "gate", "rules/gate"),
        ("gate", "gate", "evaluate/gate"),
        ("ood", "ood-related", "evaluate/ood-related"),
        ("transfer", "transfer-longer", "tables"),
        ("train", "", "train"),
        ("train", "", "metrics"),
        ("report", "", "result"),
    ],
)
def test_each_place_of_a_stage_is_tried_before_its_work(stage: str, part: str, blocked: str, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, "tiny")
    workspace.check_writable(stage, part)
    (workspace.outputs / blocked).parent.mkdir(parents=True)
    (workspace.outputs / blocked).write_text("a file", encoding="utf-8")
    with pytest.raises(NotADirectoryError):
        workspace.check_writable(stage, part)


@pytest.mark.parametrize("changed", ["dLLM", "prompts", "sweep", "results", "sources.json"])
def test_rules_of_other_sources_are_not_compared_with(tmp_path: Path, changed: str) -> None:
    """`unmask pretrain; unmask train; unmask gate` by hand, without the stage of the rules between."""
    workspace, case = Workspace(tmp_path, "tiny"), EvalCase("gate", "", "mini-llada", "many", "gate", wide=False)
    folder, sweep = workspace.outputs / "rules" / "gate", SETTINGS.sweep
    made_of = {
        "dLLM": workspace.outputs / "pretrain" / "mini-llada" / "model.safetensors",
        "prompts": workspace.task("many").split("gate"),
        "results": folder / "results.jsonl",
        "sources.json": folder / "sources.json",
    }
    for path in made_of.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", encoding="utf-8")
    made = sources(workspace, SETTINGS.decode, sweep, case) | {"results": content_hash(made_of["results"])}
    files.write_json(made_of["sources.json"], made)
    assert rule_results(workspace, SETTINGS.decode, sweep, case) == []
    if changed == "sweep":
        sweep = sweep.model_copy(update={"seeds": (7,)})
    elif changed == "sources.json":
        made_of[changed].unlink()
    else:
        made_of[changed].write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"{changed}.*\. Run `.*"):
        rule_results(workspace, SETTINGS.decode, sweep, case)
