"""The device that a dLLM is loaded on, for stages and commands alike; a GPU is only told of here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from components.commands import bench, doctor, lm_eval_model, resolve
from components.core import processes
from components.core.devices import device_name
from components.settings import Settings, read
from components.stages.common import models
from components.stages.common.workspace import Workspace
from tests.messages import has_remedy

ROOT = Path(__file__).parents[2]
HUB = "GSAI-ML/LLaDA-8B-Instruct"


class Loading(Exception):
    """Raised in place of loading: its argument is the device."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The outputs of stage pretrain for an embedded dLLM and a hub model, neither of which is really loaded."""
    workspace = Workspace(tmp_path, "tiny")
    for name, source in {"mini-llada": None, "hub": HUB}.items():
        folder = workspace.outputs / "pretrain" / name
        folder.mkdir(parents=True)
        record = {"source": source, "revision": None, "dtype": "float32"}
        (folder / "source.json").write_text(json.dumps(record), encoding="utf-8")

    def load(path: str, device: str = "cpu", *rest: Any) -> Any:
        raise Loading(device)

    for module in (models, lm_eval_model):
        monkeypatch.setattr(module, "load", load)
    monkeypatch.setattr("components.denoisers.load", load)
    return workspace


def device_of(place: Workspace, way: str, settings: Settings) -> str:
    """The device that the way of loading asks for."""
    with pytest.raises(Loading) as found:
        if way in ("mini-llada", "hub"):
            models.open_denoiser(place, way)
        elif way == "--denoiser":
            resolve.open_dllm(place, settings, HUB)
        elif way == "lm_eval":
            lm_eval_model.Unmask(**{"denoiser": HUB, "policy": "threshold:0.9", "dtype": "float32"})
        else:
            model = HUB if way == "bench --model" else None
            bench._subject(bench.Request(model=model, dtype="float32"), place, settings)
    return str(found.value)


EMBEDDED = ("mini-llada", "bench --dtype")
CHECKPOINTS = ("hub", "--denoiser", "lm_eval", "bench --model")


@pytest.mark.parametrize("way", [*EMBEDDED, *CHECKPOINTS])
def test_a_checkpoint_goes_to_the_gpu_and_an_embedded_dllm_to_the_cpu(
    way: str, place: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = read(ROOT / "params.yaml")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of(place, way, settings) == ("cpu" if way in EMBEDDED else "cuda")
    for asked in ("cpu", "cuda:1", "auto"):
        monkeypatch.setenv("UNMASK_DEVICE", asked)
        assert device_of(place, way, settings) == asked
    assert not capsys.readouterr().err


@pytest.mark.parametrize("way", [*EMBEDDED, *CHECKPOINTS])
def test_a_checkpoint_on_the_cpu_is_said_unless_it_is_asked_for(
    way: str, place: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = read(ROOT / "params.yaml")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of(place, way, settings) == "cpu"
    said = capsys.readouterr().err.splitlines()
    assert len(said) == (way in CHECKPOINTS)
    assert all("sees no GPU" in line and has_remedy(line) for line in said)
    monkeypatch.setenv("UNMASK_DEVICE", "cpu")
    assert device_of(place, way, settings) == "cpu" and not capsys.readouterr().err


def test_an_empty_name_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_name(True, {"UNMASK_DEVICE": ""}) == "cuda" and device_name(False, {"UNMASK_DEVICE": ""}) == "cpu"


def test_the_doctor_tells_checkpoints_from_embedded_dllms(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, there in {"device_count": 1, "is_available": True}.items():
        monkeypatch.setattr(torch.cuda, name, lambda there=there: there)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "H200")
    assert doctor.device(ROOT)[1].startswith("cpu, checkpoints cuda (") and "H200" in doctor.device(ROOT)[1]
    monkeypatch.setenv("UNMASK_DEVICE", "cuda")
    assert doctor.device(ROOT)[1].startswith("cuda (")


@pytest.mark.parametrize(("rank", "card"), [("0", 0), ("3", 3), ("5", 1)])
def test_each_process_takes_the_gpu_of_its_number(rank: str, card: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By LOCAL_RANK and before it meets the others: what it loads on "cuda" later lies there."""
    taken: list[int] = []

    def meet(*args: Any, **more: Any) -> None:
        raise RuntimeError("no others")

    for name, value in {"WORLD_SIZE": "8", "RANK": "7", "LOCAL_RANK": rank}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(dist, "init_process_group", meet)
    with pytest.raises(processes.ProcessLost), processes.joined():
        pytest.fail("there are no others")
    assert taken == [card]
