"""Policies, caches and attention where tensors lie on several devices, which doubles stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from components.commands import bench, compare, decode
from components.commands.decode import Asked
from components.core.devices import ran_out
from components.decode.engine import rollout
from components.decode.job import DecodeOptions
from components.denoisers.cached import KINDS, CachedDenoiser
from components.denoisers.transformer import TransformerDenoiser
from components.policies import store
from components.policies.confidence import ConfidencePolicy, Shape
from components.policies.heuristics import Threshold
from components.settings import read
from components.stages.common.workspace import Workspace
from tests.unit.test_cached import canvas_of, job_of, transformer

torch.set_num_threads(1)

META, SECOND = torch.device("meta"), torch.device("cuda", 1)
SETTINGS = read(Path(__file__).parents[2] / "params.yaml")
FAR: Any = SimpleNamespace(device=META, width=8)  # a denoiser that lies elsewhere, as torch's device meta does
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


# --- a dLLM over two cards --------------------------------------------------------------------------------------------


class OnSecond(Tensor):
    """A tensor of the second card. A plain one is on the first, a parameter where its layer is."""

    __torch_function__ = cast(Any, torch._C._disabled_torch_function_impl)


class Cards(TorchFunctionMode):
    """Torch as on two cards: it refuses tensors of both in one operation, except those of no axis."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and not isinstance(x, nn.Parameter)]
        second = any(isinstance(x, OnSecond) for x in given)
        if func == cast(Any, Tensor.device).__get__:
            return SECOND if second else torch.device("cpu")
        asked = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.device)]
        if second and func is not Tensor.to and any(x.ndim and not isinstance(x, OnSecond) for x in given):
            raise RuntimeError(f"Expected all tensors to be on the same device: {func.__name__}")
        plain: Any = tree_map_only(torch.device, lambda _: torch.device("cpu"), (args, dict(kwargs or {})))
        plain = tree_map_only(OnSecond, lambda x: x.as_subclass(Tensor), plain)
        found = func(*plain[0], **plain[1])
        if SECOND in asked or (second and not asked):
            return tree_map_only(Tensor, lambda x: x.as_subclass(OnSecond), found)
        return found


def over_two_cards(layout: str) -> TransformerDenoiser:
    """All layers but the first on the second card; inputs follow, as accelerate lets them."""
    denoiser = transformer(layout)
    for layer in list(denoiser.model.model.layers)[1:]:
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: tree_map_only(Tensor, lambda x: x.to(SECOND), (args, kwargs)), with_kwargs=True
        )
    return denoiser


@pytest.mark.parametrize("layout", ["llada", "dream"])
def test_attention_of_layers_on_two_cards_is_read_on_the_first(layout: str) -> None:
    canvas = canvas_of(transformer(layout), 3, [0, 3], (0, 8))
    wanted = transformer(layout).attended(canvas, None, (-1, 0, 1))
    with Cards():
        found = over_two_cards(layout).attended(canvas, None, (-1, 0, 1))
    for own, other in zip(found[:2], wanted[:2], strict=True):
        assert not isinstance(own, OnSecond) and torch.equal(own, other)


@pytest.mark.parametrize("layout", ["llada", "dream"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_over_two_cards_decodes_the_same(kind: str, layout: str) -> None:
    job, options = job_of(), DecodeOptions(rows=4, workers=1)
    wanted = rollout(CachedDenoiser(transformer(layout), kind), Threshold(0.5), job, options)
    with Cards():
        found = rollout(CachedDenoiser(over_two_cards(layout), kind), Threshold(0.5), job, options)
    assert torch.equal(found.canvas_RL, wanted.canvas_RL) and torch.equal(found.order_RL, wanted.order_RL)
    assert found.forwards == wanted.forwards > 0
