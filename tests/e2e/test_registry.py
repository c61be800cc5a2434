"""MLflow for real, on SQLite files in tmp_path: runs, publishing, versions, the champion. Changing nothing means: not
a row of the database and not a byte of an artifact.
"""

import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from components.commands.promote import promote
from components.commands.rollback import rollback
from components.core.errors import DataError, SettingsError
from components.export import NumpyPolicy
from components.stages.common.runfile import FLOW_RUN
from components.stages.common.workspace import Workspace
from components.stages.report import show
from components.tracking import pages, registry, store
from components.tracking.abandoned import PROCESS
from components.tracking.mlflow_tracker import MlflowTracker
from components.tracking.publish import publish
from tests.messages import has_remedy
from tests.outputs import PICK, result, write_prompts
from tests.registry import (
    curves,
    evaluate,
    everything,
    live,
    model_file,
    new_store,
    run_python,
    train,
    versions,
    weight_of,
)

pytestmark = pytest.mark.e2e

SPEED = ((16 - 5.75 + 1) / 16) ** PICK.alpha  # what a policy that takes 5.75 of 16 passes keeps of each right answer


# the run of a training


def test_a_resumed_run_goes_on_and_no_round_is_twice_in_its_curve(root: Path):
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


def test_a_run_the_store_does_not_know_is_resumed_as_a_new_one_with_a_warning(
    root: Path, caplog: pytest.LogCaptureFixture
):
    tracker = MlflowTracker.start(store.tracking_uri(root), "unmask-tiny", "train", run_id="0" * 32)
    assert tracker.run_id not in (None, "0" * 32)
    assert "does not know the run" in caplog.text


def test_a_tracker_that_cannot_start_stops_the_run_and_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "mlflow.db").write_text("not a database, but long enough to be looked at as one " * 20)
    for uri in ("http://127.0.0.1:9", f"sqlite:///{tmp_path}/file/mlflow.db", f"sqlite:///{tmp_path}/mlflow.db"):
        with pytest.raises(SettingsError, match=r"cannot be used .*\. Start the server"):
            MlflowTracker.start(uri, "unmask-tiny", "train")


def test_processes_that_meet_on_a_fresh_store_all_get_a_run(tmp_path: Path):
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


def test_publishing_shows_the_whole_run_and_a_second_time_changes_nothing(root: Path):
    outputs = train(root)
    run_id = publish(outputs, root)
    before = everything(root)
    assert publish(outputs, root) == run_id
    assert everything(root) == before
    client = store.connect(store.tracking_uri(root))
    run = client.get_run(run_id)
    assert run.data.params == {"train.seed": "1", "train.alpha": "2.0", "domain.model": "mini-llada"}
    assert set(run.data.metrics) == {"reward/mean", "policy/entropy", "result/sudoku/accuracy", "result/sudoku/nfe"}
    assert run.data.metrics["result/sudoku/accuracy"] == 0.88
    assert run.info.run_name == "tiny alpha=2 seed=1"
    view = json.loads(client.get_experiment(run.info.experiment_id).tags[pages.VIEW])
    assert view["selectedColumns"] == ["tags.`verdict`", "metrics.`result/sudoku/accuracy`"]
    assert run.data.tags["mlflow.note.content"] == "| sudoku | 88.0 |"
    assert "learning_rate: 0.0005" in next((root / "mlartifacts").rglob("settings.yaml")).read_text()
    assert len(curves(client, run_id)["reward/mean"]) == 25
    (used,) = run.inputs.dataset_inputs if run.inputs else []
    assert used.dataset.name == "outputs/tiny/data/domain/sudoku/train.jsonl"
    folders = ("tables", "metrics", "result", "evaluate/evaluate-sudoku", "report", "train", "plots")
    shown = {entry.path for folder in folders for entry in client.list_artifacts(run_id, folder)}
    assert {
        "tables/gate.csv",
        "metrics/evaluate-sudoku.json",
        "result/sudoku.json",
        "evaluate/evaluate-sudoku/decodes.jsonl",
        "report/card.md",
        "plots/learning.csv",
    } <= shown


def test_only_what_changed_is_published_again(root: Path):
    outputs = train(root)
    run_id = publish(outputs, root)
    card = next((root / "mlartifacts").rglob("card.md"))
    untouched = card.stat().st_mtime_ns
    evaluate(outputs, accuracy=0.91)
    assert publish(outputs, root) == run_id
    client = store.connect(store.tracking_uri(root))
    assert client.get_run(run_id).data.metrics["result/sudoku/accuracy"] == 0.91
    assert "0.91" in next((root / "mlartifacts").rglob("gate.csv")).read_text()
    assert card.stat().st_mtime_ns == untouched


def test_a_run_recreated_in_a_new_store_equals_the_original(root: Path, empty_store: Path):
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
    own = {name: value for name, value in ours.tags.items() if name != PROCESS}  # which process tracks it
    assert {**theirs.tags, **own} == {**theirs.tags, "recreated.run_id": first}
    assert copy.get_run(second).info.status == "FINISHED"
    before = everything(other)
    assert publish(outputs, other) == second
    assert everything(other) == before


def test_rounds_that_the_store_missed_are_added_from_the_file(root: Path):
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


def test_a_report_brings_its_run_into_mlflow_and_a_dead_server_costs_a_warning(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    outputs = train(root)
    workspace = Workspace(root, "tiny")
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        show(workspace)
    assert "MLflow did not take the report" in caplog.text and has_remedy(caplog.text)
    client = store.connect(store.tracking_uri(root))
    run_id = json.loads((outputs / "train" / "run.json").read_text())["mlflow_run_id"]
    assert "result/sudoku/nfe" not in client.get_run(run_id).data.metrics
    show(workspace)
    assert client.get_run(run_id).data.metrics["result/sudoku/nfe"] == 5.75
    assert "report/card.md" in {entry.path for entry in client.list_artifacts(run_id, "report")}
    assert client.search_registered_models() == [], "a promotion is asked for, not made"
    before = everything(root)
    show(workspace)
    assert everything(root) == before


def test_the_verdict_on_other_results_goes_and_the_note_tells_those_that_are_there(root: Path):
    outputs = train(root)
    run_id = str(promote(outputs, root, PICK).run_id)
    client = store.connect(store.tracking_uri(root))
    assert client.get_run(run_id).data.tags["mlflow.note.content"].startswith("**promoted (version 1): level with")
    evaluate(outputs, accuracy=0.91)
    show(Workspace(root, "tiny"))
    tags = client.get_run(run_id).data.tags
    assert "verdict" not in tags and tags["mlflow.note.content"] == "| sudoku | 91.0 |"


def test_the_note_links_to_the_flow_run_also_when_it_is_over(root: Path, monkeypatch: pytest.MonkeyPatch):
    page = "http://127.0.0.1:4200/runs/flow-run/7"
    monkeypatch.setenv(FLOW_RUN, "7")
    with monkeypatch.context() as patch:
        patch.setenv(pages.FLOW_PAGE, page)
        outputs = train(root)
        run_id = publish(outputs, root)
    promote(outputs, root, PICK)
    note = store.connect(store.tracking_uri(root)).get_run(run_id).data.tags["mlflow.note.content"]
    assert note.startswith("**promoted (version 1)") and note.endswith(f"[The flow run in Prefect]({page})")


def test_the_champions_example_is_the_state_that_was_decoded_and_it_decides(root: Path):
    outputs = train(root)
    promote(outputs, root, PICK)
    uri = store.tracking_uri(root)
    fields = registry.champion_example("tiny", uri)
    kept = json.loads((outputs / "export" / "state.json").read_text())
    assert {name: value.tolist() for name, value in fields.items()} == kept
    chosen_BL = NumpyPolicy(registry.load_champion("tiny", uri)).choose(fields)
    assert chosen_BL.any() and not (chosen_BL & ~fields["masked_BL"]).any()


def test_nothing_trained_is_said_in_a_sentence(root: Path):
    with pytest.raises(DataError, match=r"run\.json is not there\. Run `dvc repro`"):
        publish(root / "outputs" / "tiny", root)


# versions and the champion


def test_the_first_good_policy_is_promoted_loads_everywhere_and_twice_changes_nothing(root: Path):
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
fields = {{"masked_BL": np.ones((2, 5), bool), "log_odds_BL": np.full((2, 5), 3, np.float32)}}
print(model.predict(fields)["utilities_BL"].sum(), model.metadata.signature)
graph = mlflow.onnx.load_model("models:/unmasking-policy-tiny@champion")
print(graph.graph.node[0].op_type)
"""
    ((status, out, err),) = run_python(code, 1)
    assert status == 0, err
    assert out.startswith("30.0")
    assert out.endswith("Mul")
    assert "'log_odds_BL': Tensor('float32', (-1, -1))" in out
    tags = versions(store.connect(uri))[0].tags
    assert list(tags)[:2] == ["status", "score"], "the list of versions shows them in this order"
    assert {"identity", "commit", "dirty", "lock", "reason", "promoted"} <= set(tags)
    assert (tags["status"], tags["accuracy"], tags["nfe"]) == ("promoted", "88.0 %", "5.75")
    assert re.fullmatch(r"\+10\.5 \[\+\d+\.\d, \+\d+\.\d\]", tags["score"])


def test_a_worse_policy_becomes_a_refused_version_and_a_better_one_the_champion(root: Path):
    promote(train(root), root, PICK)
    client = store.connect(store.tracking_uri(root))
    worse = train(root, "worse", accuracy=0.82, weight=2.0)
    verdict = promote(worse, root, PICK)
    assert (verdict.promote, verdict.live, verdict.version) == (False, False, "2")
    tags = client.get_model_version("unmasking-policy-tiny", "2").tags
    assert (tags["status"], tags["reason"]) == ("refused", verdict.reason) and "promoted" not in tags
    assert tags["gain"].startswith(f"{-6 * SPEED:+.1f} [")
    refused = client.get_model_version("unmasking-policy-tiny", "2")
    assert refused.description == str(verdict) and str(verdict).startswith("refused (version 2): not surely")
    assert refused.aliases == []
    run = client.get_run(str(verdict.run_id)).data.tags
    assert run["verdict"] == verdict.headline
    assert run["mlflow.note.content"] == f"**{verdict.headline}**\n\n| sudoku | 82.0 |"
    before = everything(root)
    assert promote(worse, root, PICK).reason == verdict.reason
    assert everything(root) == before
    assert live(client) == "1"
    better = promote(train(root, "better", accuracy=0.95, weight=3.0), root, PICK)
    assert (better.promote, better.version) == (True, "3")
    assert live(client) == "3"
    assert f"against the champion {7 * SPEED:+.1f} points" in str(better)


def test_the_same_policy_from_another_training_is_the_same_version(root: Path):
    first = promote(train(root), root, PICK)
    again = promote(train(root, "again"), root, PICK)
    assert again.version == first.version == "1"
    assert again.live
    assert again.run_id != first.run_id


def test_a_dry_run_tells_the_verdict_and_writes_nothing(root: Path, tmp_path_factory: pytest.TempPathFactory):
    outputs = train(root)
    before = everything(root)
    dry = promote(outputs, root, PICK, dry_run=True)
    assert everything(root) == before
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    assert promote(outputs, elsewhere, PICK, dry_run=True) == dry
    assert list(elsewhere.iterdir()) == []
    wet = promote(outputs, root, PICK)
    assert (dry.promote, dry.reason, dry.figures) == (wet.promote, wet.reason, wet.figures)


def test_a_rollback_sticks_until_somebody_takes_it_back(root: Path):
    promote(train(root), root, PICK)
    better = train(root, "better", accuracy=0.95, weight=3.0)
    promote(better, root, PICK)
    client = store.connect(store.tracking_uri(root))
    assert str(rollback(root, "tiny")) == "version 1 is live, version 2 is withdrawn: rolled back to version 1"
    assert live(client) == "1"
    verdict = promote(better, root, PICK)
    assert not verdict.promote
    assert re.search(r"withdrawn \(rolled back to version 1\)\. Run `unmask rollback --version 2`", verdict.reason)
    assert live(client) == "1"
    rollback(root, "tiny", 2, "the complaint was about   another model")
    assert client.get_model_version("unmasking-policy-tiny", "1").tags["withdrawn"] == (
        "the complaint was about another model"
    )
    assert promote(better, root, PICK).live
    before = everything(root)
    assert str(rollback(root, "tiny", 2)) == "version 2 is live"
    assert everything(root) == before


def test_a_rollback_goes_to_the_newest_promoted_version_that_loads_or_says_what_to_name(root: Path):
    with pytest.raises(DataError, match=r"has no champion\. Name a version"):
        rollback(root, "tiny")
    for number, accuracy in enumerate((0.85, 0.90, 0.70, 0.95), start=1):  # the third is refused
        promote(train(root, f"n{number}", accuracy, float(number)), root, PICK)
    client = store.connect(store.tracking_uri(root))
    assert live(client) == "4"
    with pytest.raises(DataError, match=r"version 3 was never promoted \(.*\)\. Use one that was: 4, 2, 1"):
        rollback(root, "tiny", 3)
    with pytest.raises(DataError, match=r"has no version 9\. Use one that was promoted: 4, 2, 1"):
        rollback(root, "tiny", 9)
    with pytest.raises(DataError, match=r"2000 characters\. Write at most"):
        rollback(root, "tiny", 2, "x" * 2000)
    model_file(client, "2").unlink()
    with pytest.raises(DataError, match=r"version 2 does not load: .*model\.onnx is not there\. Use another"):
        rollback(root, "tiny", 2)
    assert live(client) == "4"
    assert rollback(root, "tiny").live == "1"
    with pytest.raises(DataError, match="no promoted version before the champion, version 1"):
        rollback(root, "tiny")
    assert live(client) == "1"


def test_a_champion_from_other_prompts_is_evaluated_again_or_the_challenger_waits(root: Path):
    promote(train(root), root, PICK)
    challenger = train(root, "challenger", accuracy=0.95, weight=3.0)
    write_prompts(challenger, name="new ")
    evaluate(challenger, 0.95)
    waits = promote(challenger, root, PICK)
    assert not waits.promote
    assert "other prompts" in waits.reason
    asked = []

    def reevaluate(path: Path):
        asked.append(weight_of(path))
        return result("learned", "mode", 0.85, 5.75)

    verdict = promote(challenger, root, PICK, reevaluate=reevaluate)
    assert asked == [1.0], "the champion's own file is what is evaluated"
    assert verdict.promote
    assert verdict.figures["gain"] == pytest.approx(0.10 * SPEED)


def test_two_promotions_at_once_make_one_version(root: Path):
    outputs = train(root)
    code = f"""
from pathlib import Path
from components.commands.promote import promote
from tests.messages import has_remedy
from tests.outputs import PICK
print(promote(Path("{outputs}"), Path("{root}"), PICK).version)
"""
    done = run_python(code, 2)
    assert [(code, out) for code, out, _ in done] == [(0, "1"), (0, "1")], done
    assert len(versions(store.connect(store.tracking_uri(root)))) == 1


def test_a_reference_to_nothing_is_refused_with_what_to_write(root: Path):
    uri = store.tracking_uri(root)
    with pytest.raises(DataError, match="Write models:/<name>@<alias>"):
        registry.policy_path("champion", uri)
    for reference in ("models:/unmasking-policy-tiny@champion", "models:/unmasking-policy-tiny/3"):
        with pytest.raises(DataError, match="not in the registry"):
            registry.policy_path(reference, uri)
