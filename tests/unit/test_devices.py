"""Policies, caches and attention where tensors lie on several devices; torch's device meta stands for the others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from components.commands import bench, compare, decode
from components.commands.decode import Asked
from components.core.devices import ran_out
from components.policies import store
from components.policies.confidence import ConfidencePolicy, Shape
from components.policies.heuristics import Threshold
from components.settings import read
from components.stages.common.workspace import Workspace

META = torch.device("meta")
SETTINGS = read(Path(__file__).parents[2] / "params.yaml")
FAR: Any = SimpleNamespace(device=META, width=8)  # a denoiser that lies elsewhere
OWN = """
from torch import nn
from unmask_policies.policies.heuristics import Threshold

class Net(nn.Linear):
    needs = Threshold(0.5).needs
    def __init__(self):
        super().__init__(1, 1)
    def score(self, obs): ...
    def distribution(self, obs): ...
"""


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A folder, an import path of a module, and a rule."""
    store.save(ConfidencePolicy(Shape(width=8, heads=1, mlp_width=8)).eval(), tmp_path / "policy")
    (tmp_path / "my_module_policy.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for command in (decode, compare, bench):
        monkeypatch.setattr(command, "active_profile", lambda **_: (Workspace(tmp_path, "tiny"), SETTINGS))
    return [str(tmp_path / "policy"), "my_module_policy:Net", "threshold:0.9"]


def devices(policies: list[Any]) -> list[str | None]:
    """The device type of each policy's weights; None where it has none."""
    return [next(p.parameters()).device.type if isinstance(p, nn.Module) else None for p in policies]


def test_decode_brings_its_policies_to_the_denoiser(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(decode, "open_dllm", lambda *_: (FAR, None))
    monkeypatch.setattr(decode, "decode_one", lambda chosen, *_: seen.append(chosen.policy))
    monkeypatch.setattr(decode, "display", lambda _: None)
    decode.show_decode(names, Asked("", canvas="[MASK]"))
    assert devices(seen) == ["meta", "meta", None]
    assert seen[2] == Threshold(0.9)


def test_compare_brings_its_policies_to_the_denoiser(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Decoded(Exception): ...

    def stop(candidates: list[Any]) -> None:
        seen.extend(each.policy for each in candidates)
        raise Decoded

    monkeypatch.setattr(compare, "_ground", lambda *_: SimpleNamespace(opened=(FAR, None), decode=stop))
    with pytest.raises(Decoded):
        compare.show_comparison(names[0], names[1], Asked(), 4)
    assert devices(seen) == ["meta", "meta"]


def test_bench_brings_its_policies_to_the_denoiser(names: list[str], tmp_path: Path) -> None:
    cases = bench._cases(bench.Request(names, random=4), Workspace(tmp_path, "tiny"), SETTINGS, FAR)
    found = {case.name: case.policy for case in cases}
    assert devices([found[name] for name in names]) == ["meta", "meta", None]


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"), False),
    ],
)
def test_a_refused_allocation_is_known_by_what_torch_says(error: BaseException, refused: bool) -> None:
    assert ran_out(error) is refused
