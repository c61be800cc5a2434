"""The profile gpu-smoke on a CPU: every stage of the graph in order, over random checkpoints in the hub's layouts.

The checkpoints are those of the documented command, loaded by the native routes from two shards in bfloat16.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import torch

from components import cli
from components.bench import checkpoints
from components.core.files import read_json
from components.settings import read
from tests.graph import ROOT, Cell, resolve, within
from tests.outputs import read_table

torch.set_num_threads(1)
pytestmark = pytest.mark.e2e


def in_order(cells: dict[str, Cell]) -> Iterator[Cell]:
    """Every cell after those whose outputs it reads."""
    before = {
        name: {other.name for other in cells.values() for out in other.outs for dep in cell.deps if within(dep, out)}
        for name, cell in cells.items()
    }
    for name in TopologicalSorter({name: deps - {name} for name, deps in before.items()}).static_order():
        yield cells[name]


def test_every_stage_runs_over_random_checkpoints_in_the_hub_s_layouts(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNMASK_DEVICE", "cpu")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shutil.copy(ROOT / "profiles" / "gpu-smoke.yaml", root / "params.yaml")
    checkpoints.main([str(root / "data" / "smoke")])
    assert len(list((root / "data" / "smoke" / "llada").glob("*.safetensors"))) > 1
    settings = read(root / "params.yaml")
    for cell in in_order(resolve(root / "graph", settings.model_dump(mode="json"))):
        cli.app(cell.cmd.split()[1:], standalone_mode=False)
        for out in cell.outs:
            assert (root / out).exists(), f"{cell.name} did not write {out}"
    outputs = root / "outputs" / "gpu-smoke"
    assert read_json(outputs / "metrics" / "influence.json")["forwards"] > 0
    weights = [(outputs / stage / "policy" / "policy.safetensors").read_bytes() for stage in ("distill", "train")]
    assert weights[0] != weights[1], "two iterations have changed the policy"
    parity = read_json(outputs / "metrics" / "export.json")
    assert parity["texts"] == parity["equal_texts"] > 0
    for stem, model in (("evaluate-sums", "llada"), ("transfer-other_dllm", "dream"), ("ood-longer", "llada")):
        results = read_table(outputs / "tables" / f"{stem}.csv")
        assert {result.denoiser for result in results} == {model}
        assert {"learned", "distilled", "threshold", "confidence"} <= {result.family for result in results}
        assert all(result.unfinished == 0 for result in results)
    assert "gpu-smoke" in (outputs / "report" / "card.md").read_text(encoding="utf-8")
