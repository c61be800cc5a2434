"""`unmask decode`, `compare` and `doctor`: what a name means, what is shown of a decode, and checks that can fail."""

from __future__ import annotations

import io
import itertools
import random
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from components.commands import doctor, extras
from components.commands.compare import Ground, alone, at_equal_speed, differences, telling
from components.commands.decode import HOLE, Shown, boards, lines
from components.commands.puzzles import is_solvable, wrong_cells
from components.commands.resolve import candidate, rule, task_for
from components.core.errors import DataError, SettingsError
from components.core.types import Action
from components.evaluation.evaluate import Candidate
from components.evaluation.results import EvalResult, write_results
from components.maths.distributions import Bernoulli
from components.policies.heuristics import EntropyBound, Quota, Threshold
from components.settings import read
from components.stages.common.workspace import Workspace
from components.tasks import END, Example, build
from components.tasks.example import fill
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
    with pytest.raises(DataError, match=f"Write one like {like}"):
        task_for(SETTINGS, prompt)


def test_a_task_is_named_whatever_the_prompt_begins_with() -> None:
    prompt = SETTINGS.data.tasks["sudoku_many"].build().sample(0, 0).prompt
    assert task_for(SETTINGS, prompt, "sudoku_many")[0] == "sudoku_many"
    assert task_for(SETTINGS, "L" + "." * 36, "sudoku_long")[0] == "sudoku_long"  # of the library, not of params.yaml
    with pytest.raises(SettingsError, match="did you mean sudoku_many") as refused:
        task_for(SETTINGS, prompt, "sudoku_mani")
    assert has_remedy(str(refused.value))


# --- what the rules of a puzzle say ---------------------------------------------------------------------------------

PUZZLES = ("sudoku_many", "sudoku_unique", "sudoku_long", "sudoku_pair", "worded_many", "worded_unique", "n_queens")


@pytest.mark.parametrize("kind", [*PUZZLES, "number_sorting", "worded_sorting"])
def test_a_right_answer_has_no_wrong_cell_and_a_wrong_text_has_one(kind: str) -> None:
    """Wrong cells are found by rules of their own; the task's score is the judge."""
    task, source = build(kind), random.Random(0)
    for index in range(10):
        example = task.sample(index, 0)
        whole = fill(example.answer, task.canvas_length)
        assert is_solvable(task, example.prompt) and not wrong_cells(task, example, whole)
        for _ in range(10):
            text = list(whole)
            for _ in range(source.randint(1, 3)):
                text[source.randrange(len(text))] = source.choice(task.alphabet.replace(".", "") + END)
            cells = wrong_cells(task, example, "".join(text))
            if END not in text[: len(example.answer)]:  # else what stands behind the END is cut
                assert bool(cells) == (not task.score("".join(text), example).correct), (example, text)
            assert cells <= set(range(task.canvas_length))


@pytest.mark.parametrize(
    ("kind", "prompt", "solvable"),
    [
        ("sudoku_many", "M..3.2.....1...4.", False),  # the sudoku that the README once showed
        ("sudoku_many", "M" + "." * 16, True),
        ("sudoku_many", "M11" + "." * 14, False),
        ("sudoku_pair", "Z" + "." * 16 + "..3.2.....1...4.", False),
        ("worded_many", "W..3.2.....1...4.", False),
        ("worded_many", "W.1...4..4..1..3.", True),
        ("worded_unique", "X11..............", False),
        ("worded_sorting", "Y<12345678", True),
        ("n_queens", "Q12......", False),
        ("n_queens", "Q1.......", True),
        ("number_sorting", "N<12345678", True),
    ],
)
def test_a_prompt_without_any_right_answer_is_known(kind: str, prompt: str, solvable: bool) -> None:
    assert is_solvable(build(kind), prompt) is solvable


def brute(task: Any, prompt: str, digits: str, holes: int) -> bool:
    """Whether any filling of the holes is right, by trying them all."""
    filled = (prompt[1:].replace(".", "{}").format(*text) for text in itertools.product(digits, repeat=holes))
    return any(task.score(text, Example(task.name, prompt, "")).correct for text in filled)


def test_solvable_agrees_with_trying_everything() -> None:
    source, found = random.Random(1), set()
    task = build("sudoku_many")
    for index in range(40):
        grid = list(task.sample(index, 0).answer)
        for cell in source.sample(range(16), 5):
            grid[cell] = "."
        grid[source.choice([i for i in range(16) if grid[i] != "."])] = source.choice("1234")
        prompt = "M" + "".join(grid)
        found.add(is_solvable(task, prompt))
        assert is_solvable(task, prompt) == brute(task, prompt, "1234", 5), prompt
    assert found == {True, False}


# --- what is shown --------------------------------------------------------------------------------------------------


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
        rows = [line for line in console.export_text().splitlines() if re.fullmatch(r"│[\s1-4_!\[\]]*│", line.strip())]
        assert re.sub(r"[^1-4_]", "", "".join(rows)) == shown.canvas(step)
        assert sum(bool(re.search("[1-4_]", row)) for row in rows) == length // columns


def test_clues_and_wrong_cells_are_marked_on_boards_and_in_lines_without_a_terminal() -> None:
    shown = replace(drawn(1, 16, 4), correct=False, clues=frozenset({0, 5}), wrong=frozenset({5, 7}))
    *_, marks, verdict = lines([shown])
    assert marks == "      =    x x          = given, x wrong" and verdict.endswith("wrong")
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(boards([shown], shown.nfe, shown.nfe))
    text = console.export_text()
    assert f"[{shown.tokens[0]}]" in text and f"!{shown.tokens[5]}!" in text and f"!{shown.tokens[7]}!" in text
    assert text.count("!") == 6 and "[1] given by the prompt" in text and "!1! wrong" in text
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(boards([shown], 0, shown.nfe))
    assert "!" not in console.export_text()  # nothing is wrong before it is there


def test_a_prompt_without_right_answer_is_named_as_such() -> None:
    shown = replace(drawn(1, 16, 4), correct=None, unjudged="the prompt has no right answer")
    assert lines([shown])[-1].endswith("the prompt has no right answer")


# --- compare --------------------------------------------------------------------------------------------------------


def measured(setting: str, correct: list[float], nfe: list[float]) -> EvalResult:
    head = {"task": "t", "family": "f", "setting": setting, "block_length": 16, "choose": "mode"}
    return EvalResult.of_prompts(head, correct, nfe)


@pytest.mark.parametrize(("better", "where"), [([1, 1, 0], 1), ([0, 0, 0], 0), ([1, 0, 0], 2)])
def test_the_prompt_shown_tells_the_two_apart_in_either_direction(better: list[float], where: int) -> None:
    one = measured("a", [1, 0, 0], [4, 4, 4])
    assert telling(one, measured("b", better, [4, 4, 2])) == where
    assert telling(measured("b", better, [4, 4, 2]), one) == where


def test_how_often_each_was_right_alone_is_counted() -> None:
    one, other = measured("a", [1, 0, 1, 0, 1], [4] * 5), measured("b", [0, 1, 1, 0, 0], [3] * 5)
    assert alone(one, other) == "right alone, of 5 prompts: a 2, b 1"


@pytest.mark.parametrize(
    ("given", "speed", "wanted"),
    [
        ("threshold:0.5", 4.1, "threshold:0.8"),  # of the three swept numbers, the nearest in forward passes
        ("threshold:0.8", 4.1, None),  # is that one already
        ("threshold:0.83", 4.1, None),  # is nearer than any swept one
        ("margin:1", 4.1, None),  # not swept here
    ],
)
def test_a_rule_is_compared_once_more_at_the_others_speed(
    tmp_path: Path, given: str, speed: float, wanted: str | None
) -> None:
    place = Workspace(tmp_path, "tiny")
    nfe = {"threshold:0.5": 2.0, "threshold:0.8": 4.5, "threshold:0.83": 4.2, "threshold:0.9": 7.0, "margin:1": 16.0}
    swept = [
        replace(
            measured(f"{n}", [1.0], [0.0]), family="threshold", block_length=block, nfe=nfe[f"threshold:{n}"] / more
        )
        for n in (0.5, 0.8, 0.9)
        for block, more in ((16, 1.0), (4, 1.1))
    ]
    write_results(place.outputs / "rules" / "evaluate-many" / "results.jsonl", swept)
    prompts: Any = SimpleNamespace(lengths=[16, 16], take=lambda index: prompts)
    sweep = SETTINGS.sweep.model_copy(update={"rules": {"threshold": (0.5,)}})
    settings = SETTINGS.model_copy(update={"sweep": sweep})
    ground = Ground(place, settings, (None, None), build("sudoku_many"), "many", prompts)
    pair = [candidate(given, place, SETTINGS, "mode"), Candidate("policy", "mine", None, None)]  # type: ignore[arg-type]
    results = [
        replace(measured(given, [1.0], [1.0]), nfe=nfe[given]),
        replace(measured("mine", [1.0], [1.0]), nfe=speed),
    ]
    for order in (slice(None), slice(None, None, -1)):
        found = at_equal_speed(ground, pair[order], results[order])
        assert (found and found.setting) == wanted
    assert at_equal_speed(ground, [pair[0], pair[0]], [results[0]] * 2) is None


def test_what_rounds_to_zero_is_not_minus_zero() -> None:
    one, other = measured("a", [1.0] * 50, [4.0] * 50), measured("b", [1.0] * 50, [4.0 - 1e-4] * 50)
    said = "\n".join(differences(one, other))
    assert "-0.0" not in said and "forward passes +0.00 [+0.00, +0.00]" in said


# --- doctor ---------------------------------------------------------------------------------------------------------


def test_the_doctor_never_raises_and_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_DEVICE", "cuda:7")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/nowhere/mlflow.db")
    for name in ("exactness", "shifts"):
        monkeypatch.setattr(doctor, name, lambda root: 1 / 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    (tmp_path / "params.yaml").write_text("profile: [broken", encoding="utf-8")
    found = {name: (ok, text) for name, ok, text in doctor.checks(tmp_path)}
    failed = {name: text for name, (ok, text) in found.items() if not ok}
    assert {"settings", "device", "threads", "exactness", "shifts", "dvc", "tracker"} <= set(failed)
    assert found["python"][0] and found["packages"][0]
    for name, text in failed.items():
        assert "\n" not in text and has_remedy(text), (name, text)
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_the_doctor_names_a_store_that_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///:memory:")
    ok, text = doctor.tracker(tmp_path)
    assert not ok and "names no file" in text and has_remedy(text)


def test_outside_a_repository_the_doctor_judges_what_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("exactness", "shifts"):
        monkeypatch.setattr(doctor, name, lambda root: (True, "not asked here"))
    found = {name: (ok, text) for name, ok, text in doctor.checks(tmp_path)}
    for name in ("settings", "dvc", "outputs"):
        assert found[name] == (True, doctor.OUTSIDE)
    assert all(ok for ok, _ in found.values()), found
    assert not [*tmp_path.iterdir()]


def test_a_missing_extra_is_named_with_its_pip_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = extras.metadata.version

    def version(name: str) -> str:
        if name in ("onnxruntime", "dvc"):
            raise extras.metadata.PackageNotFoundError(name)
        return there(name)

    monkeypatch.setattr(extras.metadata, "version", version)
    ok, text = doctor.installation(tmp_path)
    assert ok and text.startswith("library, hub") and "more by pip install" in text and "pip install" in text
    (tmp_path / "dvc.yaml").touch()
    ok, text = doctor.installation(tmp_path)
    assert not ok and "[pipeline]" in text and has_remedy(text)
    said = extras.explain(ModuleNotFoundError("no", name="onnxruntime.capi"))
    assert said and "pip install -e '.[onnx]'" in said and has_remedy(said)
    assert extras.explain(ModuleNotFoundError("no", name="my_module")) is None
    monkeypatch.setattr(extras, "needs", lambda: {"": [], "infra": ["psycopg2-binary"]})
    assert "[infra]" in str(extras.explain(ModuleNotFoundError("no", name="psycopg2")))


def test_the_exactness_check_sees_a_sampler_that_is_a_little_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
