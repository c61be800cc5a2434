"""`unmask decode`, `compare` and `doctor`: what a name means, what is shown of a decode, and checks that can fail."""

from __future__ import annotations

import io
import itertools
import random
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from components.commands import doctor
from components.commands.decode import HOLE, Shown, boards, lines
from components.commands.resolve import rule, task_for
from components.core.errors import DataError, SettingsError
from components.core.types import Action
from components.maths.distributions import Bernoulli
from components.policies.heuristics import EntropyBound, Quota, Threshold
from components.settings import read
from tests.messages import has_remedy

SETTINGS = read(Path(__file__).parents[2] / "params.yaml")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("threshold:0.9", Threshold(0.9)),
        ("entropy_bound:.3", EntropyBound(0.3)),
        ("confidence", Quota("confidence", 1)),
        ("random:2", Quota("random", 2)),
    ],
)
def test_a_rule_is_its_name_and_its_number(name: str, wanted: object) -> None:
    assert rule(name) == wanted


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("treshold:0.9", "did you mean threshold"),
        ("threshold", "takes a number from 0 to 1"),
        ("threshold:7", "threshold:7: .* from 0 to 1"),
        ("threshold:nan", "from 0 to 1"),
        ("threshold:high", "threshold:high: .*takes a number"),
        ("teacher", "is no rule"),
        ("factor:0", "a number above 0"),
        ("confidence:1.5", "a whole number"),
        ("confidence:", "a whole number"),
        ("random:0", "at least 1"),
        ("outputs/nowhere", "policy folder"),
    ],
)
def test_a_name_that_means_nothing_is_refused_with_a_remedy(name: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as refused:
        rule(name)
    assert has_remedy(str(refused.value))


def test_a_prompt_belongs_to_the_task_whose_marker_it_bears() -> None:
    for task in SETTINGS.data.tasks.values():
        name, found = task_for(SETTINGS, task.build().sample(3, 0).prompt)
        assert SETTINGS.data.tasks[name].marker == task.marker and found.alphabet == task.build().alphabet


@pytest.mark.parametrize("prompt", ["", "M", "M1", "M1..............x", "x"])
def test_a_prompt_that_no_task_writes_is_refused(prompt: str) -> None:
    """A prompt of the task that it begins like is shown, else one of the gate task."""
    like = "M" if prompt.startswith("M") else SETTINGS.data.tasks[SETTINGS.evaluate.gate_task].marker
    with pytest.raises(DataError, match=f"write one like {like}"):
        task_for(SETTINGS, prompt)


def drawn(seed: int, length: int, columns: int) -> Shown:
    """A decode in a random order, several positions a step."""
    source = random.Random(seed)
    order = [source.randrange(5) for _ in range(length)]
    steps = sorted(set(order))
    tokens = tuple(source.choice("1234") for _ in range(length))
    return Shown(f"rule {seed}", tokens, tuple(map(steps.index, order)), len(steps), True, columns)


@pytest.mark.parametrize(("length", "columns"), [(16, 4), (36, 6), (8, 8)])
def test_a_line_per_forward_pass_fills_the_canvas_and_takes_nothing_back(length: int, columns: int) -> None:
    shown = drawn(length, length, columns)
    head, *steps, verdict = lines([shown])
    assert head == shown.label and f"{shown.nfe} forward passes, right" in verdict
    canvases = [HOLE * length, *(line.split()[1] for line in steps)]
    assert len(steps) == shown.nfe and canvases[-1] == "".join(shown.tokens)
    for step, (before, after) in enumerate(itertools.pairwise(canvases)):
        changed = [i for i in range(length) if before[i] != after[i]]
        assert changed == [i for i in range(length) if shown.order[i] == step]


@pytest.mark.parametrize(("length", "columns"), [(16, 4), (36, 6), (8, 8)])
def test_the_boards_show_after_each_step_what_the_lines_say(length: int, columns: int) -> None:
    shown = drawn(1, length, columns)
    for step in range(shown.nfe + 1):
        console = Console(width=100, record=True, file=io.StringIO())
        console.print(boards([shown], step, shown.nfe))
        rows = [line for line in console.export_text().splitlines() if re.fullmatch(r"│[\s1-4_]*│", line.strip())]
        assert re.sub(r"[^1-4_]", "", "".join(rows)) == shown.canvas(step)
        assert sum(bool(re.search("[1-4_]", row)) for row in rows) == length // columns


# --- doctor ---------------------------------------------------------------------------------------------------------


def test_the_doctor_never_raises_and_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_DEVICE", "cuda:7")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/nowhere/mlflow.db")
    monkeypatch.setattr(doctor, "exactness", lambda root: 1 / 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    found = {name: (ok, text) for name, ok, text in doctor.checks(tmp_path)}
    failed = {name: text for name, (ok, text) in found.items() if not ok}
    assert {"settings", "device", "threads", "exactness", "dvc", "tracker"} <= set(failed)
    assert found["python"][0] and found["packages"][0]
    for name, text in failed.items():
        assert "\n" not in text and has_remedy(text), (name, text)
    assert not [*tmp_path.iterdir()]


def test_the_exactness_check_sees_a_sampler_that_is_a_little_off(tmp_path: Path, monkeypatch) -> None:
    assert doctor.exactness(tmp_path)[0]
    monkeypatch.setattr(
        Bernoulli, "sample", lambda self, noise: Action(noise.uniform(0, 4) < self.probability_BL + 0.05)
    )
    ok, text = doctor.exactness(tmp_path)
    assert not ok and "forward passes" in text


def test_a_package_out_of_bounds_is_named_with_its_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.metadata.version
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "1.0.0" if name == "transformers" else real(name))
    ok, text = doctor.packages(tmp_path)
    assert not ok and re.search(r"transformers 1\.0\.0 \(wanted .*>=5", text)
