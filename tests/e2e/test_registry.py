"""MLflow for real, on SQLite files in tmp_path: runs, publishing, versions, the champion. Changing nothing means: not
a row of the database and not a byte of an artifact.
"""

import hashlib
import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from components.commands.promote import Pick, promote
from components.core.errors import DataError, SettingsError
from components.stages.common.runfile import describe_run, write_run
from components.tracking import registry, store
from components.tracking.mlflow_tracker import MlflowTracker, run_tags
from components.tracking.publish import experiment_name, publish
from components.tracking.tracker import CompositeTracker, JsonlTracker

pytestmark = pytest.mark.e2e

PROMPTS = 200
PICK = Pick("sudoku", block_length=16)
SETTINGS = {"train": {"lr": 5e-4, "blocks": [4, 16]}, "seed": 0}


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """Making the tables takes seconds; every test starts from a copy."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    store.connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def root(tmp_path, empty_store, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    new_store(empty_store, tmp_path)
    return tmp_path


def new_store(empty_store, folder):
    folder.mkdir(exist_ok=True)
    with closing(sqlite3.connect(empty_store)) as source, closing(sqlite3.connect(folder / "mlflow.db")) as copy:
        source.backup(copy)
    return store.connect(store.tracking_uri(folder))


def policy(weight):
    floats = (TensorProto.FLOAT, ["batch", "length"])
    graph = helper.make_graph(
        [helper.make_node("Mul", ["log_odds", "w"], ["utilities"])],
        "policy",
        [helper.make_tensor_value_info("log_odds", *floats)],
        [helper.make_tensor_value_info("utilities", *floats)],
        [helper.make_tensor("w", TensorProto.FLOAT, [1], [weight])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(made, {"commit": "c0ffee"})
    return made


def prompts_row(family, setting, accuracy, nfe, split="gate"):
    correct = (np.arange(PROMPTS) < round(accuracy * PROMPTS)).astype(float).tolist()
    head = {"task": "sudoku", "split": split, "family": family, "setting": setting, "block_length": 16}
    return head | {"choose": "mode", "correct": correct, "nfe": [float(nfe)] * PROMPTS}


def evaluate(outputs, accuracy, nfe=5.75, fast=0.65):
    """The envelope at 5.75 passes is .775 (with `fast` left alone)."""
    rows = [prompts_row("threshold", "0.8", fast, 5), prompts_row("threshold", "0.9", 0.9, 6.5)]
    rows += [prompts_row("learned", "", accuracy, nfe), prompts_row("learned", "", 0.1, 1, split="test")]
    write(outputs / "evaluate" / "prompts.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write(outputs / "evaluate" / "test.csv", f"task,family,accuracy,nfe\nsudoku,learned,{accuracy},{nfe}\n")
    figures = {"learned": {"accuracy": accuracy, "nfe": nfe}, "commit": "text is no figure"}
    write(outputs / "metrics" / "evaluate.json", json.dumps(figures))


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def train(root, name="tiny", accuracy=0.88, weight=1.0, rounds=25):
    """A profile's outputs as the pipeline leaves them, its training tracked in root's store. The profile is `tiny`."""
    outputs = root / "outputs" / name
    prompts = "".join(f'{{"prompt": {i}}}\n' for i in range(PROMPTS))
    for split in ("train", "gate"):
        write(outputs / "data" / f"sudoku.{split}.jsonl", prompts)
    used = [outputs / "data" / "sudoku.train.jsonl"]
    run = describe_run("train", "tiny", SETTINGS, used, root)
    mlflow = MlflowTracker.start(
        store.tracking_uri(root), experiment_name("tiny"), "train tiny", tags=run_tags(run), every=10
    )
    tracker = CompositeTracker(JsonlTracker(outputs / "train" / "metrics.jsonl"), mlflow)
    tracker.params(SETTINGS)
    for step in range(rounds):
        entropy = float("nan") if step == 3 else 1 / (step + 1)
        tracker.log({"reward/mean": 1 - 0.9**step, "policy/entropy": entropy}, step)
    tracker.finish("FINISHED")
    extra = {"mlflow_run_id": tracker.run_id, "started": run["started"]}
    write_run(outputs / "train" / "run.json", "train", "tiny", SETTINGS, used, {"reward": 0.9}, extra)
    evaluate(outputs, accuracy)
    write(outputs / "evaluate" / "decodes.jsonl", '{"task": "sudoku", "text": "1 2 3 4"}\n')
    write(outputs / "report" / "card.md", "# Card\n")
    write(outputs / "plots" / "learning.csv", "step,reward\n0,0.1\n")
    (outputs / "export").mkdir(exist_ok=True)
    onnx.save(policy(weight), outputs / "export" / "policy.onnx")
    return outputs


def everything(root):
    """Every row of the database, and name and content of every artifact."""
    with closing(sqlite3.connect(root / "mlflow.db")) as connection:
        rows = sorted(connection.iterdump())
    files = [path for path in (root / "mlartifacts").rglob("*") if path.is_file()]
    return rows, {str(p): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in files}


def curves(client, run_id):
    keys = client.get_run(run_id).data.metrics
    return {key: [(p.step, p.value) for p in client.get_metric_history(run_id, key)] for key in keys}


def versions(client):
    return client.search_model_versions("name = 'unmasking-policy-tiny'")


def live(client):
    return str(client.get_registered_model("unmasking-policy-tiny").aliases["champion"])


# the run of a training


def test_a_resumed_run_goes_on_and_no_round_is_twice_in_its_curve(root):
    uri = store.tracking_uri(root)
    first = MlflowTracker.start(uri, "unmask-tiny", "train", every=1)
    for step in range(6):
        first.log({"reward/mean": step}, step)
    client = store.connect(uri)
    run_id = str(first.run_id)
    client.set_terminated(run_id, "KILLED")
    again = MlflowTracker.start(uri, "unmask-tiny", "train", run_id=run_id, every=1)
    assert again.run_id == run_id
    assert client.get_run(run_id).info.status == "RUNNING"
    for step in range(4, 9):  # the checkpoint was after step 3
        again.log({"reward/mean": step}, step)
    again.finish("FINISHED")
    assert curves(client, run_id) == {"reward/mean": [(step, float(step)) for step in range(9)]}
    assert client.get_run(run_id).info.status == "FINISHED"


def test_a_run_the_store_does_not_know_is_resumed_as_a_new_one_with_a_warning(root, caplog):
    tracker = MlflowTracker.start(store.tracking_uri(root), "unmask-tiny", "train", run_id="0" * 32)
    assert tracker.run_id not in (None, "0" * 32)
    assert "does not know the run" in caplog.text


def test_a_tracker_that_cannot_start_stops_the_run_and_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "mlflow.db").write_text("not a database, but long enough to be looked at as one " * 20)
    for uri in ("http://127.0.0.1:9", f"sqlite:///{tmp_path}/file/mlflow.db", f"sqlite:///{tmp_path}/mlflow.db"):
        with pytest.raises(SettingsError, match=r"cannot be used .*; without it .*; start the server"):
            MlflowTracker.start(uri, "unmask-tiny", "train")


def run_python(code, count, **environment):
    """Several Python processes at once; their exit codes and what they said on the standard output."""
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    said = [process.communicate() for process in started]
    return [(process.returncode, out.strip(), err) for process, (out, err) in zip(started, said, strict=True)]


def test_processes_that_meet_on_a_fresh_store_all_get_a_run(tmp_path):
    code = f"""
from components.tracking.mlflow_tracker import MlflowTracker
tracker = MlflowTracker.start("sqlite:///{tmp_path}/mlflow.db", "unmask-tiny", "train")
tracker.log({{"reward/mean": 1.0}}, 0)
tracker.finish("FINISHED")
print(tracker.run_id)
"""
    done = run_python(code, 3)
    assert [code for code, _, _ in done] == [0, 0, 0], done
    client = store.connect(f"sqlite:///{tmp_path}/mlflow.db")
    assert {out for _, out, _ in done} == {
        run.info.run_id for run in client.search_runs([store.experiment(client, "unmask-tiny")])
    }
    assert len(client.search_experiments(filter_string="name = 'unmask-tiny'")) == 1


# publishing


def test_publishing_shows_the_whole_run_and_a_second_time_changes_nothing(root):
    outputs = train(root)
    run_id = publish(outputs, root)
    before = everything(root)
    assert publish(outputs, root) == run_id
    assert everything(root) == before
    client = store.connect(store.tracking_uri(root))
    run = client.get_run(run_id)
    assert run.data.params["train.blocks"] == "[4, 16]"
    assert run.data.metrics["evaluate/learned/accuracy"] == 0.88
    assert len(curves(client, run_id)["reward/mean"]) == 25
    (used,) = run.inputs.dataset_inputs if run.inputs else []
    assert used.dataset.name == "outputs/tiny/data/sudoku.train.jsonl"
    folders = ("evaluate", "report", "train", "plots")
    shown = {entry.path for folder in folders for entry in client.list_artifacts(run_id, folder)}
    assert {"evaluate/test.csv", "evaluate/decodes.jsonl", "report/card.md", "plots/learning.csv"} <= shown


def test_only_what_changed_is_published_again(root):
    outputs = train(root)
    run_id = publish(outputs, root)
    card = next((root / "mlartifacts").rglob("card.md"))
    untouched = card.stat().st_mtime_ns
    evaluate(outputs, accuracy=0.91)
    assert publish(outputs, root) == run_id
    client = store.connect(store.tracking_uri(root))
    assert client.get_run(run_id).data.metrics["evaluate/learned/accuracy"] == 0.91
    assert "0.91" in next((root / "mlartifacts").rglob("test.csv")).read_text()
    assert card.stat().st_mtime_ns == untouched


def test_a_run_recreated_in_a_new_store_equals_the_original(root, empty_store):
    outputs = train(root)
    original = store.connect(store.tracking_uri(root))
    first = publish(outputs, root)
    other = root / "other"
    copy = new_store(empty_store, other)
    second = publish(outputs, other)
    assert second != first
    assert curves(copy, second) == curves(original, first)
    ours, theirs = original.get_run(first).data, copy.get_run(second).data
    assert ours.params == theirs.params
    assert {**theirs.tags, **ours.tags} == {**theirs.tags, "recreated.run_id": first}
    assert copy.get_run(second).info.status == "FINISHED"
    before = everything(other)
    assert publish(outputs, other) == second
    assert everything(other) == before


def test_rounds_that_the_store_missed_are_added_from_the_file(root):
    outputs = train(root)
    client = store.connect(store.tracking_uri(root))
    run_id = json.loads((outputs / "train" / "run.json").read_text())["mlflow_run_id"]
    with closing(sqlite3.connect(root / "mlflow.db")) as connection:
        connection.execute("delete from metrics where step >= 10")
        connection.execute("update runs set status = 'RUNNING'")
        connection.commit()
    publish(outputs, root)
    assert [step for step, _ in curves(client, run_id)["reward/mean"]] == list(range(25))
    assert client.get_run(run_id).info.status == "FINISHED"


def test_nothing_trained_is_said_in_a_sentence(root):
    with pytest.raises(DataError, match=r"run\.json is not there; .*; run `dvc repro`"):
        publish(root / "outputs" / "tiny", root)


# versions and the champion


def test_the_first_good_policy_is_promoted_loads_everywhere_and_twice_changes_nothing(root):
    outputs = train(root)
    verdict = promote(outputs, root, PICK)
    assert (verdict.promote, verdict.live, verdict.version) == (True, True, "1")
    before = everything(root)
    again = promote(outputs, root, PICK)
    assert (again.promote, again.live, again.version) == (False, True, "1")
    assert everything(root) == before
    uri = store.tracking_uri(root)
    exported = (outputs / "export" / "policy.onnx").read_bytes()
    assert registry.load_champion("tiny", uri).read_bytes() == exported
    assert registry.policy_path("models:/unmasking-policy-tiny/1", uri).read_bytes() == exported
    code = f"""
import mlflow, numpy as np
mlflow.set_tracking_uri("{uri}")
model = mlflow.pyfunc.load_model("models:/unmasking-policy-tiny@champion")
print(model.predict({{"log_odds": np.full((2, 5), 3, np.float32)}})["utilities"].sum(), model.metadata.signature)
graph = mlflow.onnx.load_model("models:/unmasking-policy-tiny@champion")
print(graph.graph.node[0].op_type)
"""
    ((status, out, err),) = run_python(code, 1)
    assert status == 0, err
    assert out.startswith("30.0")
    assert out.endswith("Mul")
    assert "'log_odds': Tensor('float32', (-1, -1))" in out
    tags = versions(store.connect(uri))[0].tags
    assert {"identity", "commit", "dirty", "dependencies", "lock", "gate.reason", "gate.figures"} <= set(tags)
    assert tags["gate"] == "promoted"


def test_a_worse_policy_becomes_a_refused_version_and_a_better_one_the_champion(root):
    promote(train(root), root, PICK)
    client = store.connect(store.tracking_uri(root))
    worse = train(root, "worse", accuracy=0.82, weight=2.0)
    verdict = promote(worse, root, PICK)
    assert (verdict.promote, verdict.live, verdict.version) == (False, False, "2")
    tags = client.get_model_version("unmasking-policy-tiny", "2").tags
    assert tags["gate"] == "refused"
    assert tags["gate.reason"] == verdict.reason
    assert json.loads(tags["gate.figures"])["gain"] == pytest.approx(-0.06)
    assert client.get_model_version("unmasking-policy-tiny", "2").description == str(verdict)
    before = everything(root)
    assert promote(worse, root, PICK).reason == verdict.reason
    assert everything(root) == before
    assert live(client) == "1"
    better = promote(train(root, "better", accuracy=0.95, weight=3.0), root, PICK)
    assert (better.promote, better.version) == (True, "3")
    assert live(client) == "3"
    assert "against the champion +7.0 points" in str(better)


def test_the_same_policy_from_another_training_is_the_same_version(root):
    first = promote(train(root), root, PICK)
    again = promote(train(root, "again"), root, PICK)
    assert again.version == first.version == "1"
    assert again.live
    assert again.run_id != first.run_id


def test_a_dry_run_tells_the_verdict_and_writes_nothing(root, tmp_path_factory):
    outputs = train(root)
    before = everything(root)
    dry = promote(outputs, root, PICK, dry_run=True)
    assert everything(root) == before
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    assert promote(outputs, elsewhere, PICK, dry_run=True) == dry
    assert list(elsewhere.iterdir()) == []
    wet = promote(outputs, root, PICK)
    assert (dry.promote, dry.reason, dry.figures) == (wet.promote, wet.reason, wet.figures)


def test_a_rollback_sticks_until_somebody_takes_it_back(root):
    promote(train(root), root, PICK)
    better = train(root, "better", accuracy=0.95, weight=3.0)
    promote(better, root, PICK)
    uri = store.tracking_uri(root)
    client = store.connect(uri)
    registry.rollback(uri, "tiny", "1")
    assert live(client) == "1"
    verdict = promote(better, root, PICK)
    assert not verdict.promote
    assert "withdrawn" in verdict.reason
    assert live(client) == "1"
    registry.rollback(uri, "tiny", "2")
    assert promote(better, root, PICK).live
    with pytest.raises(DataError, match="has no version 9"):
        registry.rollback(uri, "tiny", "9")


def test_a_champion_from_other_prompts_is_evaluated_again_or_the_challenger_waits(root):
    promote(train(root), root, PICK)
    challenger = train(root, "challenger", accuracy=0.95, weight=3.0)
    write(challenger / "data" / "sudoku.gate.jsonl", "".join(f'{{"prompt": "new {i}"}}\n' for i in range(PROMPTS)))
    waits = promote(challenger, root, PICK)
    assert not waits.promote
    assert "other prompts" in waits.reason
    asked = []

    def reevaluate(path: Path):
        asked.append(onnx.load(path).graph.initializer[0].float_data[0])
        return prompts_row("learned", "", 0.85, 5.75)

    verdict = promote(challenger, root, PICK, reevaluate=reevaluate)
    assert asked == [1.0], "the champion's own file is what is evaluated"
    assert verdict.promote
    assert verdict.figures["gain"] == pytest.approx(0.10)


def test_two_promotions_at_once_make_one_version(root):
    outputs = train(root)
    code = f"""
from pathlib import Path
from components.commands.promote import Pick, promote
print(promote(Path("{outputs}"), Path("{root}"), Pick("sudoku")).version)
"""
    done = run_python(code, 2)
    assert [(code, out) for code, out, _ in done] == [(0, "1"), (0, "1")], done
    assert len(versions(store.connect(store.tracking_uri(root)))) == 1


def test_a_reference_to_nothing_is_refused_with_what_to_write(root):
    uri = store.tracking_uri(root)
    with pytest.raises(DataError, match="write models:/<name>@<alias>"):
        registry.policy_path("champion", uri)
    for reference in ("models:/unmasking-policy-tiny@champion", "models:/unmasking-policy-tiny/3"):
        with pytest.raises(DataError, match="not in the registry"):
            registry.policy_path(reference, uri)
