"""Flows without a Prefect server and without DVC: parameters, the guard, the worktree's name, the first look."""

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from prefect import Flow
from prefect.exceptions import ParameterTypeError
from prefect.utilities.callables import parameter_schema

from components.core.errors import CheckpointError, DataError, SettingsError
from components.settings import Settings
from components.tracking import pages, store
from flows import parameters, preflight, process_group, results, tasks, worktree
from flows.evaluate import evaluate_policy
from flows.promote import promote_policy
from flows.rollback import rollback_policy
from flows.sweep import sweep
from flows.train_policy import train_policy
from tests.messages import has_remedy
from tests.registry import new_store

ROOT = Path(__file__).parents[2]
PARAMS = """\
# the scale
profile: tiny
train: {seed: 0, alpha: 1.0, iterations: 3, learning_rate: 5.0e-4, prompts: 32, group: 8}  # rewards
evaluate: {tasks: [sudoku]}
"""
BAD = [
    ("profile", "../tiny"),
    ("profile", ""),
    ("seed", -1),
    ("seed", 1.5),
    ("alpha", -1),
    ("alpha", "fast"),
    ("iterations", 0),
    ("learning_rate", 0),
    ("learning_rate", 2),
    ("prompts_per_iteration", 0),
    ("group", 1),
]
GIVEN = {"seed": 3, "alpha": 2.5, "iterations": 7, "learning_rate": 1e-4, "prompts_per_iteration": 16, "group": 4}


# --- parameters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", parameters.PLACES)
def test_a_parameter_changes_its_own_place_and_nothing_else(name: str) -> None:
    expected = yaml.safe_load(PARAMS)
    section, key = parameters.PLACES[name]
    expected[section][key] = GIVEN[name]
    assert yaml.safe_load(parameters.merge(PARAMS, {"profile": "other", name: GIVEN[name]})) == expected


def test_parameters_left_empty_change_nothing_and_comments_stay() -> None:
    nothing = dict.fromkeys([*parameters.PLACES, "profile"])
    merged = parameters.merge(PARAMS, nothing)
    assert yaml.safe_load(merged) == yaml.safe_load(PARAMS)
    assert "# the scale" in merged and "# rewards" in merged


@settings(deadline=None)
@given(st.floats(min_value=0, max_value=1, exclude_min=True))
def test_every_float_arrives_as_the_same_number_in_every_yaml_reader(value: float) -> None:
    read = yaml.safe_load(parameters.merge(PARAMS, {"learning_rate": value}))
    assert read["train"]["learning_rate"] == value


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bounds_refuse_values_that_cannot_work(name: str, value: object) -> None:
    with pytest.raises(ParameterTypeError, match=name):
        train_policy.validate_parameters({name: value})


FLOWS = (train_policy, promote_policy, rollback_policy, evaluate_policy, sweep)


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_the_form_says_what_an_empty_field_means(flow: Flow[..., Any]) -> None:
    fields = parameter_schema(flow.fn).properties
    empty = {name for name, field in fields.items() if field["default"] in (None, "")}
    assert all("Empty: " in fields[name]["description"] for name in empty), fields
    assert empty or flow is promote_policy


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_the_form_is_flat_described_and_its_defaults_are_valid(flow: Flow[..., Any]) -> None:
    schema = parameter_schema(flow.fn)
    assert not schema.definitions  # a nested default would be replaced as a whole by a run's partial value
    assert all(field.get("description") for field in schema.properties.values())
    flow.validate_parameters({name: field["default"] for name, field in schema.properties.items()})


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *(ROOT / "profiles").glob("*.yaml")], ids=lambda p: p.name)
def test_every_parameter_has_its_place_in_every_profile_and_the_result_is_valid(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for section, key in parameters.PLACES.values():
        assert key in yaml.safe_load(text)[section]
    # Paper B decides one position a step: there is no speed to reward.
    given = GIVEN | ({"alpha": 0.0} if yaml.safe_load(text)["train"]["objective"] == "upo" else {})
    found = parameters.validated(parameters.merge(text, given))
    assert {name: getattr(getattr(found, s), k) for name, (s, k) in parameters.PLACES.items()} == given


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A commit with the settings files of this repository, and a profile of a user's own."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copy(ROOT / "params.yaml", folder)
    shutil.copytree(ROOT / "profiles", folder / "profiles")
    mine = (ROOT / "params.yaml").read_text(encoding="utf-8").replace("profile: tiny", "profile: mine", 1)
    (folder / "profiles" / "mine.yaml").write_text(mine, encoding="utf-8")
    shutil.copy(ROOT / "params.yaml", folder / "profiles" / "copied.yaml")
    author = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for words in (["init", "--quiet"], ["add", "--all"], [*author, "commit", "--quiet", "-m", "settings"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    (folder / "params.yaml").write_text("not committed", encoding="utf-8")
    return folder


@pytest.mark.parametrize("profile", [None, "tiny", "mine", "gpu"])
def test_a_run_takes_params_yaml_or_the_file_of_its_profile_as_committed(checkout: Path, profile: str | None) -> None:
    assert parameters.validated(tasks.settings_of(checkout, profile)).profile == (profile or "tiny")


def test_a_profile_that_no_file_is_named_after_is_refused_with_those_that_there_are(checkout: Path) -> None:
    named = r"profile='mime' .*did you mean mine.*copied, gpu, .*mine, .*tiny"
    with pytest.raises(SettingsError, match=named) as refused:
        tasks.settings_of(checkout, "mime")
    assert has_remedy(str(refused.value))


def test_a_file_that_names_another_profile_is_refused(checkout: Path) -> None:
    with pytest.raises(SettingsError, match=r"profiles/copied\.yaml: profile='tiny'") as refused:
        tasks.settings_of(checkout, "copied")
    assert has_remedy(str(refused.value))


def test_a_sweep_is_bounded() -> None:
    with pytest.raises(SettingsError, match="6 alphas x 6 seeds are 36"):
        sweep.fn(alphas=[float(i) for i in range(6)], seeds=list(range(6)))


# --- the guard ----------------------------------------------------------------------------------------------------


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_lines_arrive_while_the_command_still_runs_and_in_order(tmp_path: Path) -> None:
    # The command goes on only when the file is there, which the first line's arrival makes.
    code = f"""
import os, time
print("first")
for _ in range(2000):
    if os.path.exists({str(tmp_path / "seen")!r}): break
    time.sleep(0.01)
else: raise SystemExit("the line did not arrive")
print("second")
"""
    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        (tmp_path / "seen").touch()

    process_group.stream(_python(code), tmp_path, {}, log)
    assert lines == ["first", "second"]


def test_a_failure_says_the_code_and_the_last_words(tmp_path: Path) -> None:
    with pytest.raises(process_group.CommandFailed, match=r"ended with code 3: going down$"):
        process_group.stream(_python("print('going down'); raise SystemExit(3)"), tmp_path, {}, lambda line: None)


# A silent grandchild in the background: it neither writes into the broken pipe nor is waited for.
FAMILY = (
    "import subprocess, sys, time\nchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
)


def _gone(pid: int) -> bool:
    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return True
    return not psutil.wait_procs([process], timeout=20)[1]


class Cancelled(BaseException):
    """What Prefect raises in a flow that is told to stop is no Exception either."""


@pytest.mark.parametrize(
    "ending", ["", "time.sleep(600)", "import os; os.kill(os.getpid(), 9)"], ids=["ends", "runs", "dies"]
)
def test_no_grandchild_outlives_the_call(tmp_path: Path, ending: str) -> None:
    pids: list[int] = []
    before = set(psutil.Process().children())  # the session's Prefect server may be one

    def log(line: str) -> None:
        pids.append(int(line))
        if "sleep" in ending:
            raise Cancelled

    with contextlib.suppress(Cancelled, process_group.CommandFailed):
        process_group.stream(_python(FAMILY + "print(child.pid)\n" + ending), tmp_path, {}, log)
    assert pids and _gone(pids[0])
    assert not [child for child in psutil.Process().children() if child.is_running() and child not in before]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill -9", "terminate"])
def test_no_grandchild_outlives_the_caller(tmp_path: Path, number: int) -> None:
    command = _python(FAMILY + "print(child.pid)\ntime.sleep(600)")
    code = f"""
from pathlib import Path
from flows.process_group import stream
stream({command!r}, Path({str(tmp_path)!r}), {{}}, lambda line: print(line, flush=True))
"""
    caller = subprocess.Popen(_python(code), stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert caller.stdout
    grandchild = int(caller.stdout.readline())
    os.kill(caller.pid, number)
    caller.wait()
    assert _gone(grandchild)
    caller.stdout.close()


def test_the_guarded_command_stays_in_the_callers_process_group(tmp_path: Path) -> None:
    groups: list[str] = []
    process_group.stream(_python("import os; print(os.getpgid(0))"), tmp_path, {}, groups.append)
    assert groups == [str(os.getpgid(0))]  # Prefect cancels by group: whoever leaves it is never told


# --- the worktree -------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.text(min_size=1, max_size=60))
def test_a_run_name_stays_one_folder_inside_the_worktrees(name: str) -> None:
    path = worktree.path_of(Path("/checkout"), name, "0123456789")  # of a flow, whatever its name
    assert path.parent == Path("/checkout/.worktrees")
    assert path.resolve().parent == path.parent
    assert path == worktree.path_of(Path("/checkout"), name, "0123456789")  # a retry finds it again
    assert path != worktree.path_of(Path("/checkout"), name, "9876543210")  # another run does not


def test_a_folder_without_git_or_without_a_commit_is_refused_and_dvc_repro_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not a git repository with a commit.*`dvc repro`"):
        worktree.root(tmp_path)
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    with pytest.raises(DataError, match="Make a first commit"):
        worktree.root(tmp_path)


# --- before the first stage ---------------------------------------------------------------------------------------


def profile(name: str, source: str | None = None) -> Settings:
    """The settings of a profile of this repository, by another name, with another source of its first dLLM."""
    file = ROOT / "params.yaml" if name == "tiny" else ROOT / "profiles" / f"{name}.yaml"
    text = parameters.validated(file.read_text(encoding="utf-8"))
    if source is None:
        return text
    first, *_ = text.models
    other = text.models[first].model_copy(update={"source": source})
    return text.model_copy(update={"profile": "mine", "models": text.models | {first: other}})


@pytest.mark.parametrize(
    ("name", "source", "environment"),
    [
        ("gpu", None, {}),
        ("tiny", "GSAI-ML/LLaDA-8B-Instruct", {}),  # a profile of a user's own, over a large model
        ("gpu", None, {"UNMASK_DEVICE": "cuda"}),
        ("tiny", None, {"UNMASK_DEVICE": "cuda:1"}),
    ],
)
def test_a_gpu_that_is_not_there_is_said_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, name: str, source: str | None, environment: dict[str, str]
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match=r"sees no GPU on this machine.*train-policy/cpu") as refused:
        preflight.check_device(profile(name, source), environment)
    assert has_remedy(str(refused.value))


@pytest.mark.parametrize(
    ("name", "source", "environment"),
    [("tiny", None, {}), ("gpu", None, {"UNMASK_DEVICE": "cpu"}), ("tiny", "my_package.models:small", {})],
)
def test_a_cpu_is_always_there(name: str, source: str | None, environment: dict[str, str]) -> None:
    preflight.check_device(profile(name, source), environment)


def test_where_a_gpu_is_there_it_is_taken_without_being_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    preflight.check_device(profile("gpu"), {})


def test_only_checkpoints_are_looked_for_on_this_machine() -> None:
    assert [model.source for model in preflight.pretrained(profile("gpu"))]
    assert not preflight.pretrained(profile("tiny")) and not preflight.pretrained(profile("tiny", "mine:small"))


def test_a_model_is_a_checkpoint_folder_or_in_the_cache(tmp_path: Path) -> None:
    for name in ("nobody/has-this-model", str(tmp_path)):
        with pytest.raises(CheckpointError, match=f"{name}.*hf download"):
            preflight.check_model(name)
    (tmp_path / "config.json").touch()
    (tmp_path / "model.safetensors").touch()
    preflight.check_model(str(tmp_path))


# --- what is shown ------------------------------------------------------------------------------------------------


def test_the_page_shows_the_reports_table_and_every_number_of_every_stage(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "metrics").mkdir()
    (tmp_path / "report" / "table.md").write_text("| policy | accuracy |\n|---|---|\n| learned | 0.9 |\n")
    (tmp_path / "metrics" / "train.json").write_text('{"reward": {"mean": 0.75}, "iterations": 3}')
    (tmp_path / "metrics" / "ood-far.json").write_text('{"accuracy": 0.5}')
    (tmp_path / "headroom").mkdir()
    (tmp_path / "headroom" / "many.json").write_text('{"task": "sudoku", "order": {"headroom": 0.25}}')
    page = results.metrics_page(tmp_path, "tiny")
    for line in (
        "| learned | 0.9 |",
        "| train | reward/mean | 0.75 |",
        "| train | iterations | 3 |",
        "| ood-far | accuracy | 0.5 |",
        "| headroom-many | order/headroom | 0.25 |",
    ):
        assert line in page.splitlines()


def test_the_figures_of_evaluate_are_told_by_task(tmp_path: Path) -> None:
    (tmp_path / "metrics").mkdir()
    for name, value in (("evaluate-sudoku", 0.9), ("evaluate-n_queens", 0.8), ("gate", 0.7), ("ood-evaluate", 0.6)):
        (tmp_path / "metrics" / f"{name}.json").write_text(f'{{"learned_mode": {{"accuracy": {value}}}}}')
    found = results.evaluated(tmp_path)
    assert found == {"n_queens": {"learned_mode": {"accuracy": 0.8}}, "sudoku": {"learned_mode": {"accuracy": 0.9}}}


def test_the_table_has_the_difference_in_view(tmp_path: Path) -> None:
    (tmp_path / "metrics").mkdir()
    figures = {"accuracy": 0.9, "nfe": 4.0, "front": 0.90004, "above_front": -0.00004}
    (tmp_path / "metrics" / "ood-far.json").write_text(json.dumps({"distilled_mode": figures, "learned_mode": figures}))
    (tmp_path / "metrics" / "train.json").write_text('{"reward": 0.75}')
    row, other = results.table(tmp_path)
    assert other["policy"] == "distilled_mode"  # what was trained is read first
    assert list(row)[:3] == ["case", "policy", "difference"]
    assert list(row.values()) == ["ood-far", "learned_mode", "+0.0", "90.0", "4.00", "90.0"]


@pytest.mark.parametrize("spoilt", ['{"accuracy": 0.9}', '{"accuracy": "0.9", "nfe": 4}', "[]", "1"])
def test_figures_of_another_type_are_refused_by_file(tmp_path: Path, spoilt: str) -> None:
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "ood-far.json").write_text(f'{{"learned_mode": {spoilt}}}', encoding="utf-8")
    with pytest.raises(DataError, match=r"ood-far\.json: learned_mode.* is of another type"):
        results.table(tmp_path)


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (None, "evaluated; no promotion was asked for"),
        (
            {"promote": True, "version": "3", "reason": "above", "figures": {"score": 0.051}},
            "promoted version 3, +5.1 points",
        ),
        ({"promote": False, "version": "4", "reason": "too slow", "figures": {}}, "refused, version 4: too slow"),
        ({"promote": False, "version": "4", "live": True, "reason": "-"}, "version 4 is already live"),
    ],
)
def test_the_last_state_says_the_verdict(verdict: dict[str, Any] | None, said: str) -> None:
    state = results.completed(results.headline(verdict), 1)
    assert (state.name, state.message) == ("Completed", said)


def test_links_lead_to_the_run_and_its_pages_or_say_how_to_see_them(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(pages.UI, raising=False)
    uri, client = f"sqlite:///{tmp_path}/mlflow.db", new_store(empty_store, tmp_path)
    made = client.create_run(store.experiment(client, "unmask-tiny"))
    verdict = {"run_id": made.info.run_id}
    assert pages.UI in results.links_page(tmp_path, verdict, uri)
    monkeypatch.setenv(pages.UI, "http://127.0.0.1:5000")
    page = results.links_page(tmp_path, verdict, uri)
    run = f"http://127.0.0.1:5000/#/experiments/{made.info.experiment_id}/runs/{made.info.run_id}"
    assert f"({run}?workflowType=machine_learning)" in page  # else MLflow opens an empty page about GenAI
    assert f"({run}/artifacts/report/order.html?" in page


# --- the promotion ------------------------------------------------------------------------------------------------


def test_the_verdict_comes_by_a_file_whatever_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that promotes prints what it wants, JSON included, and writes the file that it is given."""
    program = """
import json, sys
print('{"promote": true, "reason": "printed by a library"}')
with open(sys.argv[1], "w", encoding="utf-8") as file:
    json.dump({"promote": False, "reason": "written"}, file)
print('{"promote": true}')
"""
    commands: list[list[str]] = []
    followed = process_group.stream

    def stream(command: list[str], *rest: object) -> None:
        commands.append(command)
        verdict = command[command.index("--verdict") + 1]
        followed([sys.executable, "-c", program, verdict], *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(tasks, "stream", stream)
    monkeypatch.setattr(tasks, "get_run_logger", lambda: logging.getLogger("flow"))
    assert tasks.promote.fn(tmp_path, tmp_path, True) == {"promote": False, "reason": "written"}
    assert commands[0][-1] == "--dry-run"
    program = "print('nothing is written')"
    with pytest.raises(DataError, match=r"verdict\.json is not there\. Run `unmask promote`"):
        tasks.promote.fn(tmp_path, tmp_path)


FAULTS = """
import resource
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    b"x" * 2_000_000
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_a_stage_on_a_dask_worker_keeps_the_memory_that_it_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")  # what a worker's nanny sets
    lines: list[str] = []
    environment = tasks.stage_environment(tmp_path, tmp_path)
    process_group.stream([sys.executable, "-c", FAULTS], tmp_path, environment, lines.append)
    assert int(lines[-1]) < 100 * 2_000_000 / 4096 / 10  # a tenth of mapping all of them anew
