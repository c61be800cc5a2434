"""infra/gpu_check.py at small size on a CPU: one file with every figure, whatever part fails or takes too long."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
POLICIES = {"threshold", "confidence", "coupled"}
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def script() -> Any:
    specification = importlib.util.spec_from_file_location("gpu_check", ROOT / "infra" / "gpu_check.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["gpu_check"] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


def run(script: Any, folder: Path, *words: str) -> tuple[int, dict[str, Any]]:
    out = folder / "gpu.json"
    failed = script.main(["--device", "cpu", "--size", "small", "--slack", "50", "--out", str(out), *words])
    return failed, json.loads(out.read_text(encoding="utf-8"))


@pytest.mark.e2e
def test_all_figures_are_in_one_file(script: Any, tmp_path: Path) -> None:
    failed, found = run(script, tmp_path)
    assert failed == 0, {name: part for name, part in found.items() if isinstance(part, dict) and "error" in part}
    assert found["same_texts"] == {layout: dict.fromkeys(sorted(POLICIES), 1.0) for layout in ("llada", "dream")}
    for layout in ("llada", "dream"):
        assert found[f"make_{layout}"]["weight_bytes"] == 2 * found[f"make_{layout}"]["parameters"] > 0
        for name in POLICIES:
            assert found[f"decode_{layout}_one_row"][name]["rows"] == 1
            decoded, counted = found[f"decode_{layout}"][name], found[f"count_{layout}"][name]
            assert decoded["tokens_per_second"] > 0 and sum(decoded["shares"].values()) == pytest.approx(1)
            assert decoded["not_the_forward"] == pytest.approx(1 - decoded["shares"]["denoiser"])
            assert 1 <= decoded["nfe"] <= decoded["canvas"]
            assert counted["kernels_per_step"]["denoiser"] > 10 and counted["waits_per_step"] > 0
    assert found["files_dream"]["seconds_to_load"] > 0 and found["files_dream"]["seconds_to_write"] > 0
    assert set(found["training_iteration"]["seconds"]) == {"rollout", "reward", "update"}
    assert found["training_iteration"]["live"] > 0 and found["seconds"] > 0


@pytest.mark.e2e
def test_a_part_that_fails_or_takes_too_long_ends_alone(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang() -> Iterator[dict[str, Any]]:
        yield {"before": 1}
        time.sleep(600)

    def fall() -> Iterator[dict[str, Any]]:
        raise RuntimeError("out of memory")

    parts = [("one", 10.0, fall), ("two", 0.01, hang), ("three", 10.0, lambda: iter([{"right": True}]))]
    monkeypatch.setattr(script, "parts", lambda check: iter(parts))
    failed, found = run(script, tmp_path)
    assert found["two"]["before"] == 1  # what was measured until then stays
    assert failed == 2 and found["three"] == {"right": True}
    assert "out of memory" in found["one"]["error"] and "more than 0 seconds" in found["two"]["error"]
    assert found["part_seconds"]["two"] < 600 and set(found["part_seconds"]) == {"one", "two", "three"}
