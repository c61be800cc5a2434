"""metrics.jsonl, the buffer before MLflow, run.json, and the identity of a policy. The stores themselves are in e2e."""

import csv
import json
import math
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from components.commands import promote
from components.core.errors import DataError
from components.core.files import read_lines
from components.stages.common import runfile
from components.tracking import model, store
from components.tracking.mlflow_tracker import MlflowTracker, clean, flatten, run_tags
from components.tracking.publish import stage_figures
from components.tracking.tracker import CompositeTracker, JsonlTracker

# metrics.jsonl


def write(path, steps, **resume):
    tracker = JsonlTracker(path, **resume)
    for step in steps:
        tracker.log({"reward/mean": step / 10, "policy/entropy": 1.0}, step)
    tracker.finish("FINISHED")


def test_a_resumed_file_equals_one_that_was_never_interrupted(tmp_path):
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    write(whole, range(8))
    write(broken, range(5))
    with broken.open("a") as file:
        file.write('{"step": 5, "reward/me')  # killed while it wrote
    write(broken, range(3, 8), resume_after=2)  # the checkpoint was after step 2
    assert broken.read_bytes() == whole.read_bytes()


def test_a_torn_last_line_costs_one_line_and_a_torn_middle_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, range(3))
    text = path.read_text()
    path.write_text(text[:-4])
    assert [record["step"] for record in read_lines(path)] == [0, 1]
    path.write_text(text[:9] + "\n" + text[9:])
    with pytest.raises(DataError, match="line 1 is not JSON"):
        read_lines(path)


def test_a_fresh_start_forgets_the_file_and_a_missing_one_is_named(tmp_path):
    path = tmp_path / "new" / "metrics.jsonl"
    with pytest.raises(DataError, match=r"metrics\.jsonl is not there"):
        read_lines(path)
    write(path, range(4))
    write(path, range(2))
    assert [record["step"] for record in read_lines(path)] == [0, 1]


@given(st.floats())
def test_every_line_is_json_whatever_the_value(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("jsonl") / "metrics.jsonl"
    tracker = JsonlTracker(path)
    tracker.log({"kl": value}, 0)
    tracker.finish("FINISHED")
    text = path.read_text()
    assert json.loads(text, parse_constant=pytest.fail)["kl"] == (value if math.isfinite(value) else None)


def test_a_table_is_a_file_beside_it(tmp_path):
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    tracker.table("samples", [{"text": "a,\nb", "correct": 1}, {"text": "c", "nfe": 3}])
    with (tmp_path / "samples.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"text": "a,\nb", "correct": "1", "nfe": ""},
            {"text": "c", "correct": "", "nfe": "3"},
        ]


# the buffer before MLflow


class Client:
    """Stands in for MlflowClient: remembers batches, and fails while `down`."""

    def __init__(self, down=False):
        self.down, self.attempts, self.points, self.status = down, 0, [], None

    def log_batch(self, run_id, metrics=(), params=(), tags=()):
        self.attempts += 1
        if self.down:
            raise ConnectionError("no route to the store")
        self.points += [(metric.key, metric.step, metric.value) for metric in metrics]

    def set_terminated(self, run_id, status):
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


def test_a_store_that_goes_away_warns_and_training_goes_on_and_gets_all_when_it_is_back(caplog):
    client = Client()
    tracker = MlflowTracker(client, "r1", every=2)  # type: ignore[arg-type]
    for step in range(40):
        client.down = 2 <= step < 30
        tracker.log({"reward/mean": step}, step)
    warnings = [record.message for record in caplog.records]
    assert warnings
    assert all("the run goes on" in message for message in warnings)
    assert len(warnings) <= 4, "attempts at a dead store become rarer"
    tracker.finish("FINISHED")
    assert client.points == [("reward/mean", step, step) for step in range(40)]


def test_a_store_that_never_comes_back_does_not_stop_the_end(caplog):
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


def test_both_trackers_hear_everything_and_the_named_run_gives_the_name(tmp_path):
    client = Client()
    both = CompositeTracker(JsonlTracker(tmp_path / "metrics.jsonl"), MlflowTracker(client, "r7"))  # type: ignore[arg-type]
    assert both.run_id == "r7"
    both.log({"reward/mean": 0.5}, 3)
    both.finish("FAILED")
    assert read_lines(tmp_path / "metrics.jsonl") == [{"step": 3, "reward/mean": 0.5}]
    assert client.points == [("reward/mean", 3, 0.5)]
    assert client.status == "FAILED"


@given(st.text(min_size=1))
def test_names_become_what_mlflow_allows(name):
    from mlflow.utils.validation import _validate_metric_name, _validate_tag_name

    legal = clean(f"gate/{name}/t=0.5")
    _validate_metric_name(legal)
    _validate_tag_name(legal)


def test_settings_are_flattened_by_path_and_lists_stay_whole():
    settings = {"train": {"lr": 5e-4, "grpo": {"alpha": 1}}, "blocks": [4, 16]}
    assert dict(flatten(settings)) == {"train.lr": 5e-4, "train.grpo.alpha": 1, "blocks": [4, 16]}


def test_figures_of_all_stages_carry_their_stage(tmp_path):
    for name, value in (("evaluate", {"learned": {"accuracy": 0.9}, "note": "x"}), ("transfer-dream", {"nfe": 5})):
        (tmp_path / "metrics").mkdir(exist_ok=True)
        (tmp_path / "metrics" / f"{name}.json").write_text(json.dumps(value))
    assert stage_figures(tmp_path) == {"evaluate/learned/accuracy": 0.9, "transfer-dream/nfe": 5.0}


def test_the_default_store_is_absolute_and_the_usual_variable_wins(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert store.tracking_uri(Path(".")) == f"sqlite:///{tmp_path.resolve()}/mlflow.db"
    assert store.database(store.tracking_uri(Path("."))) == tmp_path.resolve() / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert store.tracking_uri(tmp_path) == "http://mlflow:5000"
    assert store.database("http://mlflow:5000") is None


# run.json


def test_the_identity_of_a_run_is_its_settings_and_the_content_it_depends_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = tmp_path / "code"
    (code / "__pycache__").mkdir(parents=True)
    (code / "a.py").write_text("a")

    def identity(settings):
        return runfile.describe_run("train", "tiny", settings, [code])["identity"]

    first = identity({"lr": 1, "alpha": 2})
    (code / "__pycache__" / "a.pyc").write_text("compiled")
    assert identity({"alpha": 2, "lr": 1}) == first
    assert identity({"alpha": 2, "lr": 3}) != first
    (code / "a.py").rename(code / "b.py")
    assert identity({"lr": 1, "alpha": 2}) != first, "a name is content too"


def test_run_json_says_what_ran_and_a_missing_dependency_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sudoku.train.jsonl").write_text("{}\n")
    dependencies = [Path("data/sudoku.train.jsonl")]
    begun = runfile.describe_run("train", "tiny", {"lr": 1}, dependencies)
    extra = {"mlflow_run_id": "r1", "started": "2026-11-01T12:00:00+00:00"}
    written = runfile.write_run(
        tmp_path / "out" / "run.json", "train", "tiny", {"lr": 1}, dependencies, {"reward": 0.5}, extra
    )
    assert runfile.read_run(tmp_path / "out" / "run.json") == written
    assert written["identity"] == begun["identity"]
    assert written["seconds"] > 0
    assert written["started"] == extra["started"]
    assert list(written["dependencies"]) == ["data/sudoku.train.jsonl"]
    tags = run_tags(written)
    assert tags["dependency.data/sudoku.train.jsonl"] == runfile.content_hash(dependencies[0])
    with pytest.raises(DataError, match=r"nowhere is not there\. Run"):
        runfile.content_hash(tmp_path / "nowhere")
    with pytest.raises(DataError, match="Run `dvc repro`"):
        runfile.read_run(tmp_path / "nowhere.json")


def git(root, *arguments):
    name = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    return subprocess.run(["git", *name, *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


def test_a_run_is_dirty_where_tracked_code_differs_and_not_where_dvc_wrote_its_lock(tmp_path):
    git(tmp_path, "init", "-q")
    for name in ("code.py", "dvc.lock"):
        (tmp_path / name).write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    commit = git(tmp_path, "rev-parse", "HEAD").strip()
    (tmp_path / "dvc.lock").write_text("2")
    (tmp_path / "untracked.txt").write_text("3")
    assert runfile.code_version(tmp_path) == (commit, False)
    (tmp_path / "code.py").write_text("2")
    assert runfile.code_version(tmp_path) == (commit, True)


def test_without_git_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert runfile.code_version(tmp_path) == ("unknown", None)


# the identity of a policy


def policy(weight=1.0, producer="one", note="", name="score"):
    floats = (TensorProto.FLOAT, ["batch", "length"])
    weights = helper.make_tensor("w", TensorProto.FLOAT, [1], np.array([weight], np.float32).tobytes(), raw=True)
    node = helper.make_node("Mul", ["log_odds", "w"], ["utilities"], name=name, doc_string=note)
    entry = node.metadata_props.add()
    entry.key, entry.value = "stack_trace", note
    graph = helper.make_graph(
        [node],
        "policy",
        [helper.make_tensor_value_info("log_odds", *floats)],
        [helper.make_tensor_value_info("utilities", *floats, doc_string=note)],
        [weights],
    )
    made = helper.make_model(graph, producer_name=producer, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(made, {"commit": note})
    return made


def test_the_identity_is_of_graph_and_weights_and_of_nothing_that_describes_them(tmp_path):
    def identity(made):
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


def test_the_example_is_a_row_that_the_file_accepts_and_the_signature_names_its_axes():
    made = policy()
    assert model.example(made)["log_odds"].shape == (1, 8)
    (described,) = model.signature(made).inputs.to_dict()
    assert described == {
        "name": "log_odds",
        "type": "tensor",
        "tensor-spec": {"dtype": "float32", "shape": (-1, -1)},
    }


# the evidence


def outputs_folder(root, rows):
    for folder in ("evaluate", "export", "data"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    onnx.save(policy(), root / "export" / "policy.onnx")
    (root / "data" / "sudoku.gate.jsonl").write_text("".join(f'{{"prompt": {i}}}\n' for i in range(5)))
    (root / "evaluate" / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def row(family, setting="", split="gate", task="sudoku", choose="mode"):
    head = {"task": task, "split": split, "family": family, "setting": setting, "block_length": 16, "choose": choose}
    return head | {"correct": [1, 0, 1], "nfe": [4, 5, 6]}


def test_the_evidence_is_the_gate_split_of_one_task_and_exactly_one_learned_row(tmp_path):
    others = [row("threshold", "0.9", split="test"), row("threshold", "0.9", task="countdown")]
    rows = [row("threshold", "0.9"), row("random"), row("distilled"), row("learned"), *others]
    outputs = outputs_folder(tmp_path, rows)
    found = promote.read_evidence(outputs, promote.Pick("sudoku"))
    assert [cell.family for cell in found.heuristics] == ["threshold", "random"]
    outputs_folder(tmp_path, [*rows, row("learned", choose="sample")])
    with pytest.raises(DataError, match=r"2 learned rows .* pick one of .*'choose': 'sample'"):
        promote.read_evidence(outputs, promote.Pick("sudoku"))
    assert promote.read_evidence(outputs, promote.Pick("sudoku", choose="mode")).prompts == found.prompts
    with pytest.raises(DataError, match="0 learned rows"):
        promote.read_evidence(outputs, promote.Pick("zebra"))


def test_prompts_are_the_same_if_those_that_were_evaluated_are(tmp_path):
    outputs = outputs_folder(tmp_path, [row("threshold", "0.9"), row("learned")])
    gate_file, pick = outputs / "data" / "sudoku.gate.jsonl", promote.Pick("sudoku")
    first = promote.read_evidence(outputs, pick).prompts
    with gate_file.open("a") as file:
        file.write('{"prompt": "one more, not evaluated"}\n')
    assert promote.read_evidence(outputs, pick).prompts == first
    gate_file.write_text(gate_file.read_text().replace("0", "9", 1))
    assert promote.read_evidence(outputs, pick).prompts != first
