"""The whole pipeline for real, at minute size: a training that is killed half-way, resumed by `dvc repro`, evaluated,
exported, reported, promoted, and looked at with every command that a user has.

It is open: dLLMs, cases and profiles are then added in params.yaml alone, and `dvc repro` runs what they need. A task
kind is one more Python file and its line in the table of tasks; it is in the repository from the start.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors import safe_open

from components.core.files import flatten, read_lines
from components.decode.prompts import Prompts
from components.export import Decoding, OnnxPolicy, check_parity
from components.policies import store as policies
from components.settings import read
from components.stages.common.models import open_denoiser
from components.stages.common.workspace import Workspace
from components.tracking import registry, store
from components.tracking.publish import metrics_files, results
from tests.clone import ITERATIONS, SAVED, Clone, ran
from tests.outputs import read_table

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
KILLED = 2  # killed after round 2 was logged, when the last checkpoint is that of round 1
P = Path("outputs/tiny")
GATE: str = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["evaluate"]["gate_task"]

# Stands before the real `unmask` on the PATH.
KILLER = f"""#!{sys.executable}
import os, signal, sys
from components.cli import main
from components.tracking.tracker import JsonlTracker

log = JsonlTracker.log

def last_words(self, metrics, step):
    log(self, metrics, step)
    if step == {KILLED}:
        os.kill(os.getpid(), signal.SIGKILL)

JsonlTracker.log = last_words
main()
"""


def add_a_task_kind(folder: Path) -> None:
    """The example of CONTRIBUTING.md as a file, and its line in the table; nothing else of the code changes."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- executed by a test: task -->\n```python\n(.*?)```", text, re.DOTALL)
    lines = [line for line in code.splitlines() if "TASKS" not in line]
    (folder / "components" / "tasks" / "reverse.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
    path = folder / "components" / "tasks" / "__init__.py"
    table = path.read_text(encoding="utf-8")
    table = re.sub(r"(?m)^(?=from \S*\.sequences )", "from .reverse import Reverse\n", table, count=1).replace(
        '    "sudoku_many":', '    "reverse": Reverse,\n    "sudoku_many":'
    )
    path.write_text(table, encoding="utf-8")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clone, dict[str, Any], list[str]]:
    """A clone whose training was killed, the facts of its checkpoint, and the stages that ran."""
    clone = Clone(tmp_path_factory.mktemp("killed"), add_a_task_kind)
    first = tmp_path_factory.mktemp("bin")
    (first / "unmask").write_text(KILLER)
    (first / "unmask").chmod(0o755)
    stages = ran(clone.run("dvc", "repro", "train", fails=True, first=first))
    assert not (clone.folder / P / "train" / "policy").exists()
    (path,) = (clone.folder / ".checkpoints").rglob("state.safetensors")
    with safe_open(path, framework="pt") as stored:
        return clone, json.loads(stored.metadata()["facts"]), stages


@pytest.fixture(scope="module")
def pipeline(killed: tuple[Clone, dict[str, Any], list[str]]) -> tuple[Clone, str]:
    """The clone after `dvc repro`, and what that said."""
    return killed[0], killed[0].run("dvc", "repro")


@pytest.fixture(scope="module")
def promoted(pipeline: tuple[Clone, str]) -> tuple[Clone, dict[str, Any]]:
    clone, _ = pipeline
    return clone, json.loads(clone.run("unmask", "promote", "--json").splitlines()[-1])


def test_a_killed_training_left_its_curve_and_a_checkpoint_that_lags_behind_it(
    killed: tuple[Clone, dict[str, Any], list[str]],
) -> None:
    clone, facts, _ = killed
    (lines,) = (clone.folder / ".checkpoints").rglob("metrics.jsonl")
    steps = [row["step"] for row in read_lines(lines, torn=True)]
    assert facts["iteration"] == SAVED and steps == list(range(KILLED + 1))


def test_repro_after_the_kill_resumes_and_then_runs_every_stage_once(
    killed: tuple[Clone, dict[str, Any], list[str]], pipeline: tuple[Clone, str]
) -> None:
    clone, said = pipeline
    assert f"resumes after iteration {SAVED} of {ITERATIONS}" in said
    stages = killed[2] + ran(said)
    assert stages.count("train") == 2
    wanted = set(clone.run("dvc", "stage", "list", "--name-only").split())
    assert set(stages) == wanted and len(stages) == len(wanted) + 1
    assert {"pretrain@mini-llada", "pretrain@mini-dream", f"rules@{GATE}", f"evaluate@{GATE}"} <= wanted
    assert {"gate-rules", "transfer-rules@longer", "transfer@longer", "ood-rules@related", "ood@related"} <= wanted


def test_the_resumed_training_is_the_uninterrupted_one_bit_for_bit(
    killed: tuple[Clone, dict[str, Any], list[str]], pipeline: tuple[Clone, str], tmp_path: Path
) -> None:
    clone, _ = pipeline
    other = Clone(tmp_path, add_a_task_kind)
    for part in ("data", "pretrain", "influence", "distill"):
        shutil.copytree(clone.folder / P / part, other.folder / P / part)
    other.run("unmask", "train")
    one, two = ({f.name: f.read_bytes() for f in (c.folder / P / "train" / "policy").iterdir()} for c in (clone, other))
    assert one == two and "policy.safetensors" in one
    curves = [read_lines(c.folder / P / "train" / "metrics.jsonl") for c in (clone, other)]
    assert [row["step"] for row in curves[0]] == list(range(ITERATIONS))
    for rows in curves:
        for row in rows:
            for name in [name for name in row if name.startswith("seconds/")]:
                del row[name]
    assert curves[0] == curves[1]
    # Not in vain: there was something to learn from, before the kill and after it.
    assert any(row["policy/gradient_norm"] > 0 for row in curves[0][: SAVED + 1])
    assert any(row["policy/gradient_norm"] > 0 for row in curves[0][SAVED + 1 :])
    assert len({row["policy/entropy"] for row in curves[0]}) == ITERATIONS


def test_the_resumed_training_went_on_in_the_same_mlflow_run_without_repeating_a_point(
    killed: tuple[Clone, dict[str, Any], list[str]], promoted: tuple[Clone, dict[str, Any]]
) -> None:
    clone, verdict = promoted
    client = store.connect(f"sqlite:///{clone.folder}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == killed[1]["mlflow_run_id"] == verdict["run_id"]
    assert json.loads((clone.folder / P / "train" / "run.json").read_text())["mlflow_run_id"] == run.info.run_id
    history = client.get_metric_history(run.info.run_id, "reward/mean")
    # Rounds that were in a buffer at the kill came with `unmask promote`, from metrics.jsonl.
    assert sorted(point.step for point in history) == list(range(ITERATIONS)) and run.info.status == "FINISHED"


def test_a_second_repro_runs_nothing(pipeline: tuple[Clone, str]) -> None:
    clone, _ = pipeline
    said = clone.run("dvc", "repro")
    assert not ran(said) and "up to date" in said


def test_a_change_of_the_training_leaves_what_is_before_it_alone(pipeline: tuple[Clone, str]) -> None:
    clone, _ = pipeline
    with clone.other_alpha():
        assert ran(clone.run("dvc", "repro", "--dry")) == ["train"]  # what follows depends on what that gives


def test_a_launched_training_is_committed_and_repro_goes_on(pipeline: tuple[Clone, str], tmp_path: Path) -> None:
    clone = pipeline[0].copy(tmp_path / "two")
    with clone.other_alpha():
        launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
        clone.run(sys.executable, *launch, "-m", "components.cli", "train")
        clone.run("dvc", "commit", "--force", "train")
        assert clone.run("dvc", "status", "train") == "Data and pipelines are up to date.\n"
        assert ran(clone.run("dvc", "repro", "--dry", f"evaluate@{GATE}")) == [f"evaluate@{GATE}"]


def test_dvc_shows_metrics_parameters_and_plots(pipeline: tuple[Clone, str], tmp_path: Path) -> None:
    clone, _ = pipeline
    shown = json.loads(clone.run("dvc", "metrics", "show", "--json"))[""]["data"]
    assert set(shown) == {str(P / "result" / f"{name}.json") for name in (GATE, "gate")}
    for path, found in shown.items():
        assert found["data"] == json.loads((clone.folder / path).read_text())
    assert all(len(line) <= 120 for line in clone.run("dvc", "metrics", "show").splitlines())
    with clone.other_alpha():
        changed = json.loads(clone.run("dvc", "params", "diff", "--json"))
    assert list(changed["params.yaml"]) == ["train.alpha"]
    clone.run("dvc", "plots", "show", "-o", str(tmp_path))
    page = (tmp_path / "index.html").read_text()
    assert page.count("vegaEmbed(") >= 6
    assert "report" in clone.run("dvc", "dag")


def test_the_report_is_there_and_speaks_of_this_training(pipeline: tuple[Clone, str]) -> None:
    clone, _ = pipeline
    folder = clone.folder / P / "report"
    pictures = ("pareto.png", "pareto-all.png", "learning.png", "headroom.png", "picture.png")
    assert set(pictures) <= {path.name for path in folder.iterdir()}
    assert all((folder / name).read_bytes()[:4] == b"\x89PNG" for name in pictures)
    assert (
        "learned" in (folder / "table.md").read_text() and "unmasking-policy-tiny" in (folder / "card.md").read_text()
    )


def test_a_fresh_clone_shows_the_metrics_without_the_outputs(pipeline: tuple[Clone, str], tmp_path: Path) -> None:
    clone, _ = pipeline
    shown = clone.run("dvc", "metrics", "show")
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    clone.run(*git, "add", "--all")
    assert set(clone.run("git", "diff", "--cached", "--name-only").split()) == {
        "dvc.lock",
        *(str(P / "result" / f"{name}.json") for name in (GATE, "gate")),
    }
    clone.run(*git, "commit", "--quiet", "-m", "what the run made")
    clone.run("git", "clone", "--quiet", ".", str(tmp_path / "fresh"))
    assert clone.run("dvc", "--cd", str(tmp_path / "fresh"), "metrics", "show") == shown
    assert not (tmp_path / "fresh" / P / "report").exists()


def test_the_documented_remote_hands_a_run_to_another_clone(pipeline: tuple[Clone, str], tmp_path: Path) -> None:
    clone, other = pipeline[0].copy(tmp_path / "one"), tmp_path / "other"
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8").partition("## From one clone")[2]
    (fence,) = re.findall(r"```sh\n(.*?)```", text.partition("\n## ")[0], re.DOTALL)
    assert "/mnt/shared/unmask" in fence
    for name, value in (("name", "test"), ("email", "test@example.org")):
        clone.run("git", "config", f"user.{name}", value)
    clone.run("bash", "-ec", fence.replace("/mnt/shared/unmask", str(tmp_path / "remote")))
    clone.run("git", "clone", "--quiet", ".", str(other))
    name = P / "export" / "policy.onnx"
    assert not (other / name).exists()  # Git brings its own files alone
    clone.run("dvc", "--cd", str(other), "pull", "--quiet")
    said = clone.run("dvc", "--cd", str(other), "repro", "--dry")
    assert not ran(said) and "up to date" in said
    assert (other / name).read_bytes() == (clone.folder / name).read_bytes()


def test_metrics_and_experiments_are_compared_within_120_columns(pipeline: tuple[Clone, str]) -> None:
    """The last commit holds the results; those of another trade-off differ."""
    clone, _ = pipeline
    (command,) = re.findall(r"`(dvc exp show .*?)`", (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8"))
    path = clone.folder / P / "result" / "gate.json"
    before = path.read_text(encoding="utf-8")
    try:
        path.write_text(json.dumps(json.loads(before) | {"score": -0.123, "low": -0.234}), encoding="utf-8")
        with clone.other_alpha():
            diff, shown = clone.run("dvc", "metrics", "diff"), clone.run(*shlex.split(command))
    finally:
        path.write_text(before, encoding="utf-8")
    assert "gate.json" in diff and "-0.123" in diff and f"{GATE}.json" not in diff
    assert all(name in shown for name in ("score", "low", "train.alpha")) and "components" not in shown
    assert max(map(len, (diff + shown).splitlines())) <= 120


def test_the_run_is_shown_before_any_promotion(pipeline: tuple[Clone, str]) -> None:
    clone, _ = pipeline
    client = store.connect(f"sqlite:///{clone.folder}/mlflow.db")
    run = client.get_run(json.loads((clone.folder / P / "train" / "run.json").read_text())["mlflow_run_id"])
    assert {name: value for name, value in run.data.metrics.items() if name.startswith("result/")} == results(
        clone.folder / P
    )
    assert GATE in run.data.tags["mlflow.note.content"]
    shown = {entry.path for folder in ("report", "tables") for entry in client.list_artifacts(run.info.run_id, folder)}
    assert {"report/card.md", "report/pareto.png", "tables/gate.csv"} <= shown


def test_promoting_twice_names_one_version_and_changes_nothing(promoted: tuple[Clone, dict[str, Any]]) -> None:
    clone, verdict = promoted
    assert verdict["promote"] and verdict["version"] == "1"
    before = _registry(clone)
    again = json.loads(clone.run("unmask", "promote", "--json").splitlines()[-1])
    assert again["version"] == "1" and again["live"] and not again["promote"]
    assert json.loads(clone.run("unmask", "promote", "--json", "--dry-run").splitlines()[-1])["live"]
    assert _registry(clone) == before


def _registry(clone: Clone) -> str:
    """All that the store knows of models, runs and their files, as text."""
    client = store.connect(f"sqlite:///{clone.folder}/mlflow.db")
    name = registry.model_name("tiny")
    versions = [dict(version) for version in client.search_model_versions(f"name = '{name}'")]
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    runs = [run.to_dictionary() for run in client.search_runs([experiment.experiment_id])]
    files = sorted(
        (str(f.relative_to(clone.folder)), f.stat().st_mtime_ns) for f in (clone.folder / "mlartifacts").rglob("*")
    )
    return repr((dict(client.get_registered_model(name)), versions, runs, files))


def test_the_champion_decodes_and_is_compared_as_the_exported_and_the_trained_policy_are(
    promoted: tuple[Clone, dict[str, Any]],
) -> None:
    clone, _ = promoted
    champion = f"models:/{registry.model_name('tiny')}@champion"
    prompt = read_lines(clone.folder / P / "data" / "tasks" / "sudoku_many" / "test.jsonl")[0]["prompt"]
    names = [champion, str(P / "export" / "policy.onnx"), str(P / "train" / "policy"), "confidence:2"]
    said = clone.run("unmask", "decode", prompt, *(word for name in names for word in ("--policy", name)))
    canvases = [
        re.findall(r"^ *\d+  (\S+)$", part, re.M) for part in re.split(r"^.*forward passes?, .*$", said, flags=re.M)
    ]
    by_name = dict(zip(names, canvases, strict=False))
    assert by_name[champion] == by_name[names[1]] == by_name[names[2]]
    assert len(by_name["confidence:2"]) == 8
    for steps in by_name.values():
        assert "_" not in steps[-1]
        for before, after in zip(["_" * len(steps[0]), *steps], steps, strict=False):
            assert before != after and all(b in ("_", a) for b, a in zip(before, after, strict=True))
    said = clone.run("unmask", "compare", "confidence:2", champion, "--count", "24")
    assert re.search(r"confidence:2 .* 8\.00 ", said) and re.search(r"forward passes [+-]\d", said)


def test_the_exported_file_decodes_every_other_evaluation_prompt_as_the_policy_does(
    pipeline: tuple[Clone, str],
) -> None:
    """Stage export compares the domain's own prompts; these are the prompts of transfer and out of domain, other dLLMs
    and canvases among them."""
    folder = pipeline[0].folder
    settings, workspace = read(folder / "params.yaml"), Workspace(folder, "tiny")
    policy = policies.load(folder / P / "train" / "policy").eval()
    exported = OnnxPolicy(folder / P / "export" / "policy.onnx")
    for case in (*settings.transfer.values(), *settings.ood.values()):
        denoiser, encoder = open_denoiser(workspace, case.model)
        data = workspace.task(case.task)
        prompts = Prompts.of(data.task(), data.examples("test"), encoder)
        report = check_parity(policy, exported, [], Decoding(denoiser, prompts, settings.decode.block_length))
        assert report.texts == report.equal_texts == report.equal_orders == 2 * len(prompts) > 0


def test_the_documented_ways_from_the_registry_work_as_printed(promoted: tuple[Clone, dict[str, Any]]) -> None:
    clone, _ = promoted
    text, decision = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "serving.md").read_text("utf-8"), re.DOTALL)
    assert re.search(r"\S \d+ forward passes\n$", clone.run(sys.executable, "-c", text))
    said = clone.run(sys.executable, "-c", decision + "import sys\nassert 'torch' not in sys.modules\n")
    state = json.loads((clone.folder / P / "export" / "state.json").read_text())
    chosen = [int(place) for place in re.findall(r"\d+", said)]
    assert chosen and all(state["masked_BL"][0][place] for place in chosen)


def test_the_documented_command_releases_what_the_run_made(
    promoted: tuple[Clone, dict[str, Any]], tmp_path: Path
) -> None:
    """What is packed decodes with the figures of the run's own tables."""
    clone = promoted[0].copy(tmp_path / "releasing")
    (command,) = re.findall(
        r"`python (-m components\.commands\.demo)`", (ROOT / "docs" / "serving.md").read_text("utf-8")
    )
    clone.run(sys.executable, *command.split())
    folder = clone.folder / "components" / "released"
    card = json.loads((folder / "release.json").read_text(encoding="utf-8"))
    policy = (folder / "policy.onnx").read_bytes()
    assert policy == (clone.folder / P / "export" / "policy.onnx").read_bytes()
    assert policy != (ROOT / "components" / "released" / "policy.onnx").read_bytes()
    (row,) = (
        r
        for r in read_table(clone.folder / P / "tables" / f"evaluate-{GATE}.csv")
        if (r.family, r.choose) == ("learned", clone.params()["decode"]["choose"])
    )
    said = clone.run("unmask", "demo")
    assert card["figures"]["learned policy"] == {"accuracy": row.accuracy, "nfe": row.nfe, "prompts": row.prompts}
    assert f"{100 * row.accuracy:.1f} % right in {row.nfe:.2f} forward passes (24 test prompts)" in said


def test_the_doctor_is_content(promoted: tuple[Clone, dict[str, Any]]) -> None:
    clone, _ = promoted
    lines = clone.run("unmask", "doctor").splitlines()
    assert len(lines) >= 8 and all(line.startswith("ok ") for line in lines)
    assert f"all of {P}" in lines[-1]


def test_every_stage_figure_is_documented_and_every_documented_one_is_there(pipeline: tuple[Clone, str]) -> None:
    clone, _ = pipeline
    logged = {
        name
        for stage, path in metrics_files(clone.folder / P).items()
        for name, value in flatten(json.loads(path.read_text(encoding="utf-8")), "/", stage)
        if isinstance(value, int | float)
    }
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8").partition("## Stage figures")[2]
    rows = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    patterns = {name: re.sub("<[a-z]+>", "[^/]+", name.replace(".", r"\.")) for name in rows}
    assert not [name for name in logged if not any(re.fullmatch(p, name) for p in patterns.values())]
    rare = {"prepare/<task>.rows_left_out"}  # there for a data set of which rows cannot be scored
    assert not [row for row, p in patterns.items() if row not in rare and not any(re.fullmatch(p, n) for n in logged)]


# --- what params.yaml adds ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def extended(pipeline: tuple[Clone, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Clone, list[str]]:
    """A copy of the finished clone with a task of the new kind, a third dLLM, and another case of transfer and of ood;
    and the stages that `dvc repro` then ran."""
    clone = pipeline[0].copy(tmp_path_factory.mktemp("open") / "clone")
    params, before = clone.params(), _figures(clone)
    params["data"]["tasks"]["backwards"] = {"kind": "reverse", "params": {"digits": 8}, "canvas": None}
    params["models"]["third"] = params["models"]["mini-dream"] | {"rows": {"sudoku_many": 8, "backwards": 8}}
    params["transfer"]["third"] = {"model": "third", "task": "sudoku_many"}
    params["ood"]["backwards"] = {"model": "third", "task": "backwards"}
    clone.set(params)
    stages, after = ran(clone.run("dvc", "repro")), _figures(clone)
    assert {name: after[name] for name in before if name != "prepare"} == {
        name: text for name, text in before.items() if name != "prepare"
    }
    assert set(after) - set(before) == {"pretrain-third", "transfer-third", "ood-backwards"}
    return clone, stages


def _figures(clone: Clone) -> dict[str, str]:
    return {stage: path.read_text(encoding="utf-8") for stage, path in metrics_files(clone.folder / P).items()}


def test_repro_runs_what_params_yaml_alone_adds_the_data_and_the_report(extended: tuple[Clone, list[str]]) -> None:
    """prepare runs where a task is new; the data of the others are the same bytes."""
    clone, stages = extended
    added = {"pretrain@third", "transfer-rules@third", "transfer@third", "ood-rules@backwards", "ood@backwards"}
    assert set(stages) == added | {"prepare", "report"} and len(stages) == len(set(stages))
    assert added < set(clone.run("dvc", "stage", "list", "--name-only").split())
    made = {"dvc.lock", *(str(P / "result" / f"{name}.json") for name in (GATE, "gate"))}
    changed = set(clone.run("git", "diff", "--name-only", "HEAD").split())
    assert changed - made == {"params.yaml"}, "only the settings differ from the commit"


def test_what_was_added_is_measured_and_reported(extended: tuple[Clone, list[str]]) -> None:
    clone, _ = extended
    for name, task in (("transfer-third", "sudoku_many"), ("ood-backwards", "backwards")):
        measured = read_table(clone.folder / P / "tables" / f"{name}.csv")
        assert {(r.task, r.denoiser, r.split, r.prompts) for r in measured} == {(task, "third", "test", 24)}
        assert {"learned", "distilled", "threshold"} <= {r.family for r in measured}
    shown = (clone.folder / P / "report" / "table.md").read_text(encoding="utf-8")
    assert re.search(r"\| backwards \| third \|", shown) and re.search(r"\| sudoku_many \| third \|", shown)


def test_the_commands_work_over_the_new_dllm(extended: tuple[Clone, list[str]]) -> None:
    clone, _ = extended
    prompt = read_lines(clone.folder / P / "data" / "tasks" / "sudoku_many" / "test.jsonl")[0]["prompt"]
    policy = str(P / "train" / "policy")
    said = clone.run("unmask", "decode", prompt, "--model", str(P / "pretrain" / "third"), "--policy", policy)
    assert said.splitlines()[0] == policy and re.search(r"forward pass(es)?, (right|wrong)$", said.strip())


def test_a_removed_case_leaves_the_report(extended: tuple[Clone, list[str]]) -> None:
    clone, _ = extended
    params = clone.params()
    del params["ood"]["backwards"]
    clone.set(params)
    assert ran(clone.run("dvc", "repro")) == ["report"]
    shown = (clone.folder / P / "report" / "table.md").read_text(encoding="utf-8")
    assert "backwards" not in shown and "latin_square" in shown


def test_another_profile_runs_in_folders_of_its_own(extended: tuple[Clone, list[str]]) -> None:
    """Every stage of every profile is resolved in tests/unit/test_pipeline.py, and passed in test_stages.py."""
    clone, _ = extended
    before = _files(clone.folder / P)
    clone.set(clone.params() | {"profile": "mine"})
    assert ran(clone.run("dvc", "repro", "pretrain@third")) == ["prepare", "pretrain@third"]
    assert {path.name for path in (clone.folder / "outputs").iterdir() if path.is_dir()} == {"tiny", "mine"}
    assert _files(clone.folder / P) == before
    (prompt, *_) = (
        row["prompt"] for row in read_lines(clone.folder / "outputs/mine/data/tasks/sudoku_many/test.jsonl")
    )
    said = clone.run("unmask", "decode", prompt, "--model", "outputs/mine/pretrain/third", "--policy", "threshold:0.9")
    assert re.search(r"forward pass(es)?, (right|wrong)$", said.strip())


def _files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".gitignore"}
