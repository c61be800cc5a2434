"""metrics.jsonl, the buffer before MLflow, run.json, and the identity of a policy. The stores themselves are in e2e."""

import json
import math
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import sqlalchemy
from hypothesis import given
from hypothesis import strategies as st

from components.commands.evidence import Pick, read_evidence
from components.core.errors import CheckpointError, DataError, PromotionRefused, SettingsError
from components.core.files import read_lines, write_text
from components.evaluation.results import write_results
from components.export.smoke import check_decides
from components.settings import read
from components.stages.common import runfile
from components.stages.common.cases import case_of
from components.stages.rules import sweep_of
from components.tracking import model, pages, publish, store
from components.tracking.mlflow_tracker import MlflowTracker, clean, flatten, run_name, run_tags
from components.tracking.tracker import CompositeTracker, JsonlTracker
from tests.messages import has_remedy
from tests.outputs import (
    PICK,
    PROMPTS,
    policy,
    result,
    results,
    write_export,
    write_gate,
    write_prompts,
    write_trained,
)

# metrics.jsonl


def write(path: Path, steps: Iterable[int], **resume: Any):
    tracker = JsonlTracker(path, **resume)
    for step in steps:
        tracker.log({"reward/mean": step / 10, "policy/entropy": 1.0}, step)
    tracker.finish("FINISHED")


def test_a_resumed_file_equals_one_that_was_never_interrupted(tmp_path: Path):
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    write(whole, range(8))
    write(broken, range(5))
    with broken.open("a") as file:
        file.write('{"step": 5, "reward/me')  # killed while it wrote
    write(broken, range(3, 8), resume_after=2)  # the checkpoint was after step 2
    assert broken.read_bytes() == whole.read_bytes()


def test_a_torn_last_line_costs_one_line_and_a_torn_middle_is_an_error(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    write(path, range(3))
    text = path.read_text()
    path.write_text(text[:-4])
    assert [record["step"] for record in read_lines(path, torn=True)] == [0, 1]
    with pytest.raises(DataError, match=r"is cut off in line 3"):
        read_lines(path)
    path.write_text(text[:9] + "\n" + text[9:])
    with pytest.raises(DataError, match="line 1 is not JSON"):
        read_lines(path)


def test_a_fresh_start_forgets_the_file_and_a_missing_one_is_named(tmp_path: Path):
    path = tmp_path / "new" / "metrics.jsonl"
    with pytest.raises(DataError, match=r"metrics\.jsonl is not there"):
        read_lines(path)
    write(path, range(4))
    write(path, range(2))
    assert [record["step"] for record in read_lines(path)] == [0, 1]


@given(st.floats())
def test_every_line_is_json_whatever_the_value(tmp_path_factory: pytest.TempPathFactory, value: float):
    path = tmp_path_factory.mktemp("jsonl") / "metrics.jsonl"
    tracker = JsonlTracker(path)
    tracker.log({"kl": value}, 0)
    tracker.finish("FINISHED")
    text = path.read_text()
    assert json.loads(text, parse_constant=pytest.fail)["kl"] == (value if math.isfinite(value) else None)


# the buffer before MLflow


class Client:
    """Stands in for MlflowClient: remembers batches, and fails while `down`."""

    def __init__(self, down: bool = False):
        self.down, self.attempts, self.points, self.status = down, 0, [], None

    def log_batch(self, run_id: str, metrics: Iterable[Any] = (), params: Iterable[Any] = (), tags: Iterable[Any] = ()):
        self.attempts += 1
        if self.down:
            raise ConnectionError("no route to the store")
        self.points += [(metric.key, metric.step, metric.value) for metric in metrics]

    def set_terminated(self, run_id: str, status: str):
        if self.down:
            raise ConnectionError("no route to the store")
        self.status = status


def test_rounds_go_in_batches_and_none_is_lost_or_sent_twice():
    client = Client()
    tracker = MlflowTracker(client, "r1", every=4)  # type: ignore[arg-type]
    for step in range(10):
        tracker.log({"reward/mean": step, "broken": math.nan}, step)
    assert client.attempts == 2
    tracker.finish("FINISHED")
    assert client.points == [("reward/mean", step, step) for step in range(10)]
    assert client.status == "FINISHED"


def test_a_store_that_goes_away_warns_and_training_goes_on_and_gets_all_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
):
    client = Client()
    tracker = MlflowTracker(client, "r1", every=2)  # type: ignore[arg-type]
    for step in range(40):
        client.down = 2 <= step < 30
        tracker.log({"reward/mean": step}, step)
    warnings = [record.message for record in caplog.records]
    assert warnings
    assert all("The run goes on" in message for message in warnings)
    assert len(warnings) <= 4, "attempts at a dead store become rarer"
    tracker.finish("FINISHED")
    assert client.points == [("reward/mean", step, step) for step in range(40)]


def test_a_store_that_never_comes_back_does_not_stop_the_end(caplog: pytest.LogCaptureFixture):
    tracker = MlflowTracker(Client(down=True), "r1", every=100)  # type: ignore[arg-type]
    tracker.log({"reward/mean": 1.0}, 0)
    tracker.finish("FINISHED")
    assert "the end of the run" in caplog.text


def test_a_resumed_run_does_not_send_the_rounds_it_repeats():
    client = Client()
    tracker = MlflowTracker(client, "r1", every=1, known=frozenset({("a", 0), ("a", 1), ("b", 0)}))  # type: ignore[arg-type]
    for step in range(3):
        tracker.log({"a": 1.0, "b": 2.0}, step)
    assert client.points == [("b", 1, 2.0), ("a", 2, 1.0), ("b", 2, 2.0)]


def test_both_trackers_hear_everything_and_the_named_run_gives_the_name(tmp_path: Path):
    client = Client()
    both = CompositeTracker(JsonlTracker(tmp_path / "metrics.jsonl"), MlflowTracker(client, "r7"))  # type: ignore[arg-type]
    assert both.run_id == "r7"
    both.log({"reward/mean": 0.5}, 3)
    both.finish("FAILED")
    assert read_lines(tmp_path / "metrics.jsonl") == [{"step": 3, "reward/mean": 0.5}]
    assert client.points == [("reward/mean", 3, 0.5)]
    assert client.status == "FAILED"


@given(st.text(min_size=1))
def test_names_become_what_mlflow_allows(name: str):
    from mlflow.utils.validation import _validate_metric_name, _validate_tag_name

    legal = clean(f"gate/{name}/t=0.5")
    _validate_metric_name(legal)
    _validate_tag_name(legal)


def test_settings_are_flattened_by_path_and_lists_stay_whole():
    settings = {"train": {"lr": 5e-4, "grpo": {"alpha": 1}}, "blocks": [4, 16]}
    assert dict(flatten(settings)) == {"train.lr": 5e-4, "train.grpo.alpha": 1, "blocks": [4, 16]}


def test_results_carry_their_task(tmp_path: Path):
    for name, value in (("gate", {"score": 0.05, "low": 0.01}), ("sudoku", {"nfe": 5})):
        write_text(tmp_path / "result" / f"{name}.json", json.dumps(value))
    assert publish.results(tmp_path) == {"result/gate/low": 0.01, "result/gate/score": 0.05, "result/sudoku/nfe": 5.0}


def test_a_run_is_named_by_profile_alpha_and_seed():
    assert run_name("tiny", {"train": {"alpha": 2.0, "seed": 0}}) == "tiny alpha=2 seed=0"
    assert run_name("gpu", {"train": {"alpha": [0.5, 10.0], "seed": 3}}) == "gpu alpha=0.5,10 seed=3"
    assert run_name("bench", {}) == "bench"


def test_pages_open_the_view_of_machine_learning():
    server = "http://127.0.0.1:5000/"
    runs = pages.runs(server, "1")
    for page in (pages.experiments(server), runs, pages.run(server, "1", "r")):
        assert page.startswith("http://127.0.0.1:5000/#/") and "?workflowType=machine_learning" in page
    assert pages.VIEW.endswith(f".{runs.rpartition('viewStateShareKey=')[2]}")


def test_the_default_store_is_absolute_and_the_usual_variable_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert store.tracking_uri(Path(".")) == f"sqlite:///{tmp_path.resolve()}/mlflow.db"
    assert store.database(store.tracking_uri(Path("."))) == tmp_path.resolve() / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert store.tracking_uri(tmp_path) == "http://mlflow:5000"
    assert store.database("http://mlflow:5000") is None


# run.json


def test_the_identity_of_a_run_is_its_settings_and_the_content_it_depends_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    code = tmp_path / "code"
    (code / "__pycache__").mkdir(parents=True)
    (code / "a.py").write_text("a")

    def identity(settings: dict[str, Any]):
        return runfile.describe_run("train", "tiny", settings, [code], tmp_path).identity

    first = identity({"lr": 1, "alpha": 2})
    (code / "__pycache__" / "a.pyc").write_text("compiled")
    assert identity({"alpha": 2, "lr": 1}) == first
    assert identity({"alpha": 2, "lr": 3}) != first
    (code / "a.py").rename(code / "b.py")
    assert identity({"lr": 1, "alpha": 2}) != first, "a name is content too"


def test_run_json_says_what_ran_and_a_missing_dependency_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sudoku.train.jsonl").write_text("{}\n")
    dependencies = [Path("data/sudoku.train.jsonl")]
    begun = runfile.describe_run("train", "tiny", {"lr": 1}, dependencies, tmp_path)
    begun = replace(begun, started="2026-11-01T12:00:00+00:00")
    written, path = begun.finished({"reward": 0.5}, mlflow_run_id="r1"), tmp_path / "out" / "run.json"
    runfile.write_run(path, written)
    assert runfile.read_run(path) == written
    assert (written.identity, written.started) == (begun.identity, begun.started)
    assert written.seconds > 0 and written.policy_hash is None
    assert written.dependencies == {"data/sudoku.train.jsonl": runfile.content_hash(dependencies[0])}
    tags = run_tags(written.to_json())
    assert (tags["profile"], tags["commit"]) == ("tiny", written.commit) and "dirty" not in tags  # no repository
    assert run_tags(replace(written, dirty=True).to_json())["dirty"] == "True"
    assert not set(written.dependencies.values()) & set(tags.values()), "hashes are in run.json"
    monkeypatch.setenv(runfile.FLOW_RUN, "flow-1")
    of_flow = runfile.describe_run("train", "tiny", {}, [], tmp_path).to_json()
    for page, kept in (("http://h/runs/flow-run/flow-1", True), ("http://h/runs/flow-run/flow-2", False)):
        monkeypatch.setenv(pages.FLOW_PAGE, page)  # the second reads outputs that another flow run has made
        assert run_tags(of_flow)["flow_run"] == "flow-1"
        assert run_tags(of_flow).get("flow_page") == (page if kept else None)
    with pytest.raises(DataError, match=r"nowhere is not there\. Run"):
        runfile.content_hash(tmp_path / "nowhere")
    with pytest.raises(DataError, match="Run `dvc repro`"):
        runfile.read_run(tmp_path / "nowhere.json")
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert "policy_hash" not in stored
    path.write_text(json.dumps(stored | {"a key of another version": 1}), encoding="utf-8")
    assert runfile.read_run(path) == written
    for broken, said in (({"seconds": "long"}, "seconds is of"), ({"commit": None}, "commit is of another type")):
        path.write_text(json.dumps(stored | broken), encoding="utf-8")
        with pytest.raises(DataError, match=rf"{said}.*Run `dvc repro`"):
            runfile.read_run(path)


def git(root: Path, *arguments: str):
    name = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    return subprocess.run(["git", *name, *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


def test_a_run_is_dirty_where_tracked_code_differs_and_not_where_dvc_wrote_its_lock(tmp_path: Path):
    git(tmp_path, "init", "-q")
    kept = tmp_path / "outputs" / "tiny" / "result" / "gate.json"
    for path in (tmp_path / "code.py", tmp_path / "dvc.lock", kept):
        write_text(path, "1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    commit = git(tmp_path, "rev-parse", "HEAD").strip()
    (tmp_path / "dvc.lock").write_text("2")
    kept.write_text("2")
    (tmp_path / "untracked.txt").write_text("3")
    assert runfile.code_version(tmp_path) == (commit, False)
    (tmp_path / "code.py").write_text("2")
    assert runfile.code_version(tmp_path) == (commit, True)


def test_without_git_the_commit_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert runfile.code_version(tmp_path) == ("unknown", None)


# the identity of a policy


def test_the_identity_is_of_graph_and_weights_and_of_nothing_that_describes_them(tmp_path: Path):
    def identity(made: onnx.ModelProto):
        onnx.save(made, tmp_path / "policy.onnx")
        return model.identity(tmp_path / "policy.onnx")

    first = identity(policy())
    assert identity(policy(producer="two", note="another commit")) == first
    assert identity(policy(weight=1.0000001)) != first
    changed = policy()
    changed.graph.node[0].op_type = "Add"
    assert identity(changed) != first
    external = tmp_path / "external"
    external.mkdir()
    onnx.save(policy(), external / "p.onnx", save_as_external_data=True, size_threshold=0, location="p.data")
    assert model.identity(external / "p.onnx") == first
    with pytest.raises(DataError, match="is not there"):
        model.identity(tmp_path / "none.onnx")


def test_knobs_that_decode_otherwise_are_another_identity_and_the_older_one_is_still_known(tmp_path: Path):
    found = []
    for temperature in (1.0, 2.0):
        onnx.save(policy(temperature=temperature), tmp_path / "policy.onnx")
        found.append(model.identities(tmp_path / "policy.onnx"))
    assert found[0][0] != found[1][0] and found[0][1] == found[1][1]


@pytest.mark.parametrize("content", [b"", b"no protobuf at all", b"\x08\x0a\x12"])
def test_a_file_that_is_no_onnx_file_is_refused_by_name(tmp_path: Path, content: bytes):
    (tmp_path / "policy.onnx").write_bytes(content)
    with pytest.raises((DataError, CheckpointError), match=r"policy\.onnx") as refused:
        model.identity(tmp_path / "policy.onnx")
        check_decides(tmp_path / "policy.onnx")
    assert has_remedy(str(refused.value))


@pytest.mark.parametrize("weight", [math.nan, 1.0])
def test_a_file_whose_scores_are_no_numbers_makes_no_decision(tmp_path: Path, weight: float):
    onnx.save(policy(weight=weight), tmp_path / "policy.onnx")
    if math.isnan(weight):
        with pytest.raises(CheckpointError, match=r"policy\.onnx.* NaN or infinite.* export the policy again"):
            check_decides(tmp_path / "policy.onnx")
    else:
        check_decides(tmp_path / "policy.onnx")


def test_the_example_is_the_state_that_was_decoded_and_the_signature_names_the_axes(tmp_path: Path):
    write_trained(tmp_path)
    write_export(tmp_path)
    path, made = tmp_path / "export" / "policy.onnx", policy()
    found, kept = model.example(path, made), json.loads((path.parent / "state.json").read_text())
    assert {name: value.tolist() for name, value in found.items()} == kept
    assert (found["masked_BL"].dtype, found["log_odds_BL"].dtype) == (bool, "float32")
    described = {entry["name"]: entry for entry in model.signature(made).inputs.to_dict()}
    assert described["log_odds_BL"] == {
        "name": "log_odds_BL",
        "type": "tensor",
        "tensor-spec": {"dtype": "float32", "shape": (-1, -1)},
    }
    (path.parent / "state.json").unlink()
    with pytest.raises(DataError, match=r"state\.json is not there\. Run `dvc repro export`"):
        model.example(path, made)


# the evidence


@pytest.fixture
def outputs(tmp_path: Path):
    write_prompts(tmp_path)
    write_text(tmp_path / "train" / "run.json", '{"profile": "tiny", "settings": {"train": {"alpha": 2.0}}}')
    write_trained(tmp_path)
    write_gate(tmp_path, results())
    write_export(tmp_path)
    return tmp_path


def test_the_evidence_is_the_row_that_the_settings_serve_and_the_rules_without_the_distilled_policy(outputs: Path):
    other = replace(result("threshold", "0.9", 0.5, 5), task="countdown")
    write_gate(outputs, [*results(), result("distilled", "mode", 0.5, 5), other])
    found = read_evidence(outputs, PICK)
    assert [cell.setting for cell in found.heuristics] == ["0.8", "0.9"]
    assert (found.policy.choose, found.policy.correct_P.mean(), found.canvas, found.alpha) == ("mode", 0.88, 16, 2.0)
    write_gate(outputs, [*results(), result("learned", "mode", 0.5, 5)])
    with pytest.raises(DataError, match="2 learned results"):
        read_evidence(outputs, PICK)
    write_gate(outputs, results()[:2])
    with pytest.raises(DataError, match="0 learned results"):
        read_evidence(outputs, PICK)


def test_prompts_are_the_same_if_those_that_were_evaluated_are(outputs: Path):
    first = read_evidence(outputs, PICK).prompts
    write_prompts(outputs, count=PROMPTS + 1)
    write_gate(outputs, results())
    assert read_evidence(outputs, PICK).prompts == first
    write_prompts(outputs, name="another ")
    write_gate(outputs, results())
    assert read_evidence(outputs, PICK).prompts != first


def test_half_a_sweep_and_too_few_prompts_are_refused_against_the_settings(outputs: Path):
    write_gate(outputs, results()[1:])
    with pytest.raises(DataError, match=r"1 of 2 rules of the sweep are missing, first threshold 0\.8 .* Run"):
        read_evidence(outputs, PICK)
    write_gate(outputs, [replace(r, correct_P=r.correct_P[:9], nfe_P=r.nfe_P[:9]) for r in results()])
    with pytest.raises(DataError, match=r"9 gate prompts, not 200 as asked\. Run"):
        read_evidence(outputs, PICK)


def test_the_settings_ask_for_the_rules_that_stage_rules_decodes():
    settings = read(Path(__file__).parents[2] / "params.yaml")
    pick = Pick.of(settings)
    swept = sweep_of(settings.sweep, None).candidates(pick.canvas, case_of(settings, "gate").wide)
    assert {(c.family, c.setting) for c in swept} == {rule[:2] for rule in pick.rules}
    assert len(pick.rules) == len(swept) > 10
    assert (pick.prompts, pick.alpha) == (512, 2.0)


def retrain(outputs: Path):
    write_trained(outputs, 2.0)


def retrain_and_gate(outputs: Path):
    write_trained(outputs, 2.0)
    write_gate(outputs, results(0.99))


def train_at_another_alpha(outputs: Path):
    """The gate would judge it by a speed that it was not trained for."""
    path = outputs / "train" / "run.json"
    run = json.loads(path.read_text(encoding="utf-8"))
    write_text(path, json.dumps(run | {"settings": {"train": {"alpha": [3.0, 2.0]}}}))


def train_at_no_alpha(outputs: Path):
    path = outputs / "train" / "run.json"
    write_text(path, json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"settings": {}}))


def other_dllm(outputs: Path):
    """Pretrained again by hand after the gate: the champion would be decoded over another dLLM than the challenger."""
    folder, path = outputs / "pretrain" / "mini-llada", outputs / "train" / "run.json"
    write_text(folder / "model.safetensors", "weights")
    run = json.loads(path.read_text(encoding="utf-8"))
    name = folder.relative_to(outputs.parents[1]).as_posix()
    write_text(path, json.dumps(run | {"dependencies": {name: runfile.content_hash(folder)}}))
    read_evidence(outputs, PICK)
    write_text(folder / "model.safetensors", "other weights")


def other_file(outputs: Path):
    onnx.save(policy(7.0), outputs / "export" / "policy.onnx")


def other_export(outputs: Path):
    """Whole, of another training, copied with its run.json."""
    write_trained(outputs, 3.0)
    write_export(outputs, 3.0)
    write_trained(outputs, 1.0)


def relabelled(outputs: Path):
    other_export(outputs)
    run = json.loads((outputs / "export" / "run.json").read_text())
    hashes = json.loads((outputs / "evaluate" / "gate" / "run.json").read_text())
    write_text(outputs / "export" / "run.json", json.dumps(run | {"policy_hash": hashes["policy_hash"]}))


def edited_weights(outputs: Path):
    write_text(outputs / "train" / "policy" / "policy.safetensors", "edited by hand")


def other_prompts(outputs: Path):
    write_prompts(outputs, name="another ")


def gate_at_another_temperature(outputs: Path):
    write_gate(outputs, results(), temperature=2.0)


def other_results(outputs: Path):
    """Written, and then killed before run.json told of which settings they are."""
    write_results(outputs / "evaluate" / "gate" / "results.jsonl", results(0.99))


def export_at_another_alpha(outputs: Path):
    write_export(outputs, alpha=5.0)


def torn_file(outputs: Path):
    path = outputs / "export" / "policy.onnx"
    path.write_bytes(path.read_bytes()[:50])


def file_that_is_none(outputs: Path):
    write_text(outputs / "export" / "policy.onnx", "copied here")


def file_with_nan(outputs: Path):
    write_export(outputs, math.nan)


def export_without_names(outputs: Path):
    write_text(outputs / "export" / "run.json", json.dumps({"settings": {"decode": dict(PICK.decode)}}))


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        (retrain, "gate"),
        (retrain_and_gate, "export"),
        (train_at_another_alpha, "train"),
        (train_at_no_alpha, "train"),
        (other_dllm, "gate export"),
        (other_file, "export"),
        (other_export, "export"),
        (relabelled, "export"),
        (edited_weights, "train"),
        (other_prompts, "gate"),
        (gate_at_another_temperature, "gate"),
        (other_results, "gate"),
        (export_at_another_alpha, "export"),
        (torn_file, "export"),
        (file_that_is_none, "export"),
        (file_with_nan, "export"),
        (export_without_names, "export"),
    ],
)
def test_what_was_trained_evaluated_and_exported_is_one_policy_or_the_stage_to_repeat_is_named(
    outputs: Path, change: Callable[[Path], None], stage: str
):
    read_evidence(outputs, PICK)
    change(outputs)
    with pytest.raises(PromotionRefused, match=rf"Run `dvc repro {stage}`"):
        read_evidence(outputs, PICK)


def test_outputs_of_another_profile_are_refused(outputs: Path):
    """A folder that was copied would move the champion of the profile that it was copied from."""
    with pytest.raises(PromotionRefused, match=r"training of profile tiny, params\.yaml names mine\. .*--force train"):
        read_evidence(outputs, replace(PICK, profile="mine"))


# where the store is


def test_what_a_uri_reads_otherwise_stays_inside_the_folder(tmp_path: Path):
    for name in ("50%20off", "q?x=1", "a%2Fb", "h#x", "a b", "ü", "semi;x", "plain"):
        uri = store.tracking_uri(tmp_path / name)
        assert store.database(uri) == tmp_path / name / "mlflow.db"
        assert sqlalchemy.engine.make_url(uri).database == f"{tmp_path}/{name}/mlflow.db"


def test_a_database_that_does_not_answer_is_one_sentence_at_once_and_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("MLflow tries again and again"))
    with pytest.raises(SettingsError, match=r"the tracking store .* cannot be used .*refused") as refused:
        store.connect("postgresql+psycopg2://postgres:secret1@127.0.0.1:1/mlflow")
    assert "secret1" not in str(refused.value) and has_remedy(str(refused.value))


@pytest.mark.parametrize("profile", ["../../evil", "a/../../../evil", "", ".", "a b", "tiny\n"])
def test_a_profile_that_would_keep_its_artifacts_elsewhere_is_refused(profile: str):
    with pytest.raises(DataError, match="no name for a folder") as refused:
        publish.experiment_name(profile)
    assert has_remedy(str(refused.value)) and publish.experiment_name("tiny-2_b") == "unmask-tiny-2_b"
