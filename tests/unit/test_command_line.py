"""What is typed wrong on the command line or in the environment is a sentence, before any work."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from components import cli
from components.cli import stages
from components.commands import device, doctor, lm_eval_model
from components.commands import promote as promotion
from components.commands.decode import Asked, show_decode
from components.commands.resolve import loaded
from components.core.errors import DataError, SettingsError
from components.evaluation.gate import Verdict
from tests.messages import has_remedy

ROOT = Path(__file__).parents[2]


class NoPolicy:
    """Something that can be made, and is no policy."""


def refused(found: pytest.ExceptionInfo[SettingsError]) -> str:
    said = str(found.value)
    assert has_remedy(said), said
    return said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("json:loads", "without arguments"),
        ("math:pi", "not a callable"),
        ("components.policies.confidence:ConfidencePolicy", "missing a required argument"),
        ("os:getcwd", "makes a str, which has no needs"),
        (f"{__name__}:NoPolicy", "makes a NoPolicy, which has no needs, score, distribution"),
        ("nowhere:Name", "cannot be imported"),
    ],
)
def test_an_import_path_that_makes_no_policy_is_refused(name: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as found:
        loaded(name, ROOT)
    assert name in refused(found)


def test_a_canvas_of_an_unknown_task_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SettingsError, match=r"data\.tasks has no item 'nope'") as found:
        show_decode(["threshold:0.9"], Asked("", task="nope", canvas="[MASK]"))
    refused(found)


@pytest.mark.parametrize("name", ["nope", "meta", "cuda", "cuda:99", "cuda:-1", "cpu:x", "gpu", "0"])
def test_a_device_that_is_not_there_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_DEVICE", name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(SettingsError, match=f"UNMASK_DEVICE={name}\\b") as found:
        device.check_device()
    refused(found)
    ok, said = doctor.device(ROOT)
    assert not ok and has_remedy(said)


@pytest.mark.parametrize(("name", "kept"), [("", None), ("cpu", "cpu"), ("cpu:0", "cpu:0"), ("auto", "auto")])
def test_a_device_that_is_there_stays(name: str, kept: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_DEVICE", name)
    device.check_device()
    assert os.environ.get("UNMASK_DEVICE") == kept


def test_a_gpu_is_named_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, there in (("cuda", True), ("cuda:1", True), ("cuda:2", False)):
        monkeypatch.setenv("UNMASK_DEVICE", name)
        assert (not device.device_fault()) == there


@pytest.mark.parametrize(
    ("size", "more", "said"),
    [
        ("2", {}, "without RANK, MASTER_ADDR, MASTER_PORT"),
        ("2", {"RANK": "0", "MASTER_ADDR": "h"}, "without MASTER_PORT"),
        ("x", {"RANK": "0", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, "no number of processes"),
        ("0", {"RANK": "0", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, "no number of processes"),
        ("", {}, "without RANK"),
    ],
)
def test_processes_that_no_launcher_started_are_refused(
    size: str, more: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"WORLD_SIZE": size} | more).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=said) as found:
        stages._check_launch("train")
    refused(found)


@pytest.mark.parametrize(("name", "fine"), [("auto", False), ("cuda:0", False), ("cuda", True), ("cpu", True)])
def test_processes_that_would_meet_on_one_gpu_are_refused(
    name: str, fine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "h", "MASTER_PORT": "1", "UNMASK_DEVICE": name}
    for variable, value in group.items():
        monkeypatch.setenv(variable, value)
    if fine:
        return stages._check_launch("train")
    with pytest.raises(SettingsError, match=f"UNMASK_DEVICE={name} .*of 2 processes") as found:
        stages._check_launch("train")
    refused(found)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # two machines with a process each
    stages._check_launch("train")


@pytest.mark.parametrize("words", [["--random", "99999999"], ["--random", "16", "--vocabulary", "999999999999"]])
def test_a_random_model_that_no_machine_holds_is_refused(words: list[str]) -> None:
    done = CliRunner().invoke(cli.app, ["bench", *words])
    assert done.exit_code == 2 and "Invalid value" in done.output


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """`promote` in this repository, with a verdict at once."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(promotion, "promote", lambda *args, **named: Verdict(False, "no", {}))


@pytest.mark.parametrize("place", ["", "."])
def test_a_verdict_file_that_is_a_folder_is_refused_before_the_promotion(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli.app, ["promote", "--dry-run", "--verdict", place])
    assert isinstance(done.exception, SettingsError) and "is a folder" in str(done.exception)
    assert has_remedy(str(done.exception))


@pytest.mark.usefixtures("judged")
def test_a_verdict_goes_through_a_pipe_or_device_and_does_not_replace_it(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text(encoding="utf-8")), daemon=True)
    reader.start()
    done = CliRunner().invoke(cli.app, ["promote", "--dry-run", "--verdict", str(pipe)])
    assert done.exit_code == 0, done.output
    assert pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]
    reader.join(10)
    assert json.loads(read[0])["reason"] == "no"


def harness_raises(error: Exception) -> Any:
    """A function in a module of lm_eval's that raises."""
    named: dict[str, Any] = {"__name__": "lm_eval.evaluator", "error": error}
    exec("def cli_evaluate():\n    raise error", named)
    return named["cli_evaluate"]


def test_what_the_harness_refuses_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_eval_model, "offline_unless_hub_answers", lambda: None)
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", harness_raises(ValueError("No tasks specified.")))
    with pytest.raises(SettingsError, match=r"lm_eval: No tasks specified\. Use") as found:
        lm_eval_model.run([])
    refused(found)

    def ours() -> None:
        raise ValueError("an error of this program")

    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", ours)
    with pytest.raises(ValueError, match="of this program") as kept:
        lm_eval_model.run([])
    assert not isinstance(kept.value, SettingsError)


def test_a_harness_task_whose_rows_cannot_be_had_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(lm_eval_model, "offline_unless_hub_answers", lambda: asked.append(1))
    gone = ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub (OfflineModeIsEnabled)")
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", harness_raises(gone))
    with pytest.raises(DataError, match=r"openai/gsm8k.*Connect to the network.*--include_path") as found:
        lm_eval_model.run([])
    assert has_remedy(str(found.value)) and asked
