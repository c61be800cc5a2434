"""The weight type follows the processor, and what was chosen is what later stages load."""

from __future__ import annotations

import json
from typing import Literal

import pytest
import torch

from components.denoisers import dtype, embedded
from components.settings import Decode
from components.stages.common.models import open_cached, open_denoiser
from components.stages.common.workspace import Workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("dtype"), "tiny")
    denoiser, encoder = embedded.build("llada", "0123$", embedded.Shape(16, 1, 2, 32, 64), seed=0)
    embedded.save(denoiser, encoder, workspace.outputs / "pretrain" / "mini-llada")
    return workspace


@pytest.mark.parametrize(
    ("capabilities", "wanted"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": False, "avx512_bf16": True}, "bfloat16"),
        ({"neon": True, "bf16": True}, "bfloat16"),
        ({"avx512_f": True, "avx512_bf16": False}, "float32"),
        ({}, "float32"),
    ],
)
def test_bfloat16_is_taken_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], wanted: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert dtype.native_dtype() == wanted


def record(workspace: Workspace, dtype: str) -> None:
    """What stage pretrain writes."""
    path = workspace.outputs / "pretrain" / "mini-llada" / "source.json"
    path.write_text(json.dumps({"source": None, "revision": None, "dtype": dtype}), encoding="utf-8")


@pytest.mark.parametrize("recorded", ["float32", "bfloat16"])
def test_what_stage_pretrain_recorded_is_what_is_loaded(workspace: Workspace, recorded: str) -> None:
    record(workspace, recorded)
    denoiser, _ = open_denoiser(workspace, "mini-llada")
    assert next(denoiser.model.parameters()).dtype is getattr(torch, recorded)


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_a_policy_decodes_with_the_cache_that_is_set(
    workspace: Workspace, cache: Literal["none", "prefix", "dual"]
) -> None:
    record(workspace, "float32")
    decode = Decode(
        block_length=None,
        frontier=None,
        end_of_text=False,
        temperature=1.0,
        scale=1.0,
        alpha=None,
        choose="mode",
        cache=cache,
    )
    denoiser, _ = open_cached(workspace, "mini-llada", decode)
    assert getattr(denoiser, "kind", "none") == cache
