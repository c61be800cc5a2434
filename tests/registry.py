"""MLflow for real on an SQLite file: trainings as the pipeline tracks them, and everything that a store holds."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import onnx
from mlflow import MlflowClient

from components.core.files import write_text
from components.stages.common.runfile import describe_run, write_run
from components.tracking import store
from components.tracking.mlflow_tracker import MlflowTracker, run_name, run_tags
from components.tracking.publish import experiment_name
from components.tracking.tracker import CompositeTracker, JsonlTracker
from tests.outputs import results, write_export, write_gate, write_prompts, write_trained

SETTINGS = {
    "train": {"seed": 1, "alpha": 2.0, "learning_rate": 5e-4},
    "domain": {"model": "mini-llada", "tasks": {"sudoku": 1}},
}


def new_store(empty_store: Path, folder: Path):
    folder.mkdir(exist_ok=True)
    with closing(sqlite3.connect(empty_store)) as source, closing(sqlite3.connect(folder / "mlflow.db")) as copy:
        source.backup(copy)
    return store.connect(store.tracking_uri(folder))


def evaluate(outputs: Path, accuracy: float = 0.88, **found: Any):
    """Stage gate, and what the reports are made of."""
    write_gate(outputs, results(accuracy, **found))
    write_text(outputs / "tables" / "gate.csv", f"task,family,accuracy\nsudoku,learned,{accuracy}\n")
    write_text(outputs / "metrics" / "evaluate-sudoku.json", json.dumps({"learned_mode": {"accuracy": accuracy}}))
    write_text(outputs / "result" / "sudoku.json", json.dumps({"accuracy": accuracy, "nfe": 5.75}))
    write_text(outputs / "report" / "result.md", f"| sudoku | {100 * accuracy:.1f} |\n")


def train(root: Path, name: str = "tiny", accuracy: float = 0.88, weight: float = 1.0, iterations: int = 25):
    """A profile's outputs as the pipeline leaves them, its training tracked in root's store. The profile is `tiny`."""
    outputs = root / "outputs" / name
    write_prompts(outputs)
    used = [outputs / "data" / "domain" / "sudoku" / "train.jsonl"]
    run = describe_run("train", "tiny", SETTINGS, used, root)
    mlflow = MlflowTracker.start(
        store.tracking_uri(root),
        experiment_name("tiny"),
        run_name("tiny", SETTINGS),
        tags=run_tags(run.to_json()),
        every=10,
    )
    tracker = CompositeTracker(JsonlTracker(outputs / "train" / "metrics.jsonl"), mlflow)
    tracker.params(SETTINGS)
    for step in range(iterations):
        entropy = float("nan") if step == 3 else 1 / (step + 1)
        tracker.log({"reward/mean": 1 - 0.9**step, "policy/entropy": entropy}, step)
    tracker.finish("FINISHED")
    write_run(outputs / "train" / "run.json", run.finished({"reward": 0.9}, mlflow_run_id=tracker.run_id))
    write_trained(outputs, weight)
    evaluate(outputs, accuracy)
    write_export(outputs, weight)
    write_text(outputs / "evaluate" / "evaluate-sudoku" / "decodes.jsonl", '{"task": "sudoku", "text": "1 2 3 4"}\n')
    write_text(outputs / "report" / "card.md", "# Card\n")
    write_text(outputs / "plots" / "learning.csv", "step,reward\n0,0.1\n")
    return outputs


def everything(root: Path):
    """Every row of the database, and name and content of every artifact."""
    with closing(sqlite3.connect(root / "mlflow.db")) as connection:
        rows = sorted(connection.iterdump())
    files = [path for path in (root / "mlartifacts").rglob("*") if path.is_file()]
    return rows, {str(p): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in files}


def curves(client: MlflowClient, run_id: str):
    keys = client.get_run(run_id).data.metrics
    return {key: [(p.step, p.value) for p in client.get_metric_history(run_id, key)] for key in keys}


def versions(client: MlflowClient):
    return client.search_model_versions("name = 'unmasking-policy-tiny'")


def model_file(client: MlflowClient, version: str):
    """The file behind a version, by its address and nothing else."""
    place = client.get_model_version_download_uri("unmasking-policy-tiny", version)
    return Path(unquote(place.removeprefix("file://"))) / "model.onnx"


def weight_of(path: Path):
    return float(np.frombuffer(onnx.load(path).graph.initializer[0].raw_data, np.float32)[0])


def live(client: MlflowClient):
    return str(client.get_registered_model("unmasking-policy-tiny").aliases["champion"])


def run_python(code: str, count: int, **environment: Any):
    """Several Python processes at once; their exit codes and what they said on the standard output."""
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    said = [process.communicate() for process in started]
    return [(process.returncode, out.strip(), err) for process, (out, err) in zip(started, said, strict=True)]
