"""The golden run's small pipeline: the one file that depends on the layout of the repository.

It reaches the library by its command line, in a folder of its own, and reads nothing but the files that are left there.
When a command, a setting or a file moves, change this file and record nothing: the figures must stay.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import yaml
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]
OUTPUTS = Path("outputs/golden")
CLOCKS = ("seconds", "time", "tokens_per_", "workers", "rows_in_flight")  # begin the names of what no two runs agree on

# One process for all, because starting Python and migrating MLflow's database take longer than most commands.
COMMAND_LINE = """
import json, os, sys
from components.cli import main

for folder, command in json.loads(sys.argv[1]):
    os.chdir(folder)
    sys.argv = ["unmask", *command.split()]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
"""

BASE = ["prepare", "pretrain --model llada", "pretrain --model dream", "headroom --case many"]
POLICY = [
    "influence",
    "distill",
    "train",
    "rules --group evaluate --case sudoku_many",
    "evaluate --case sudoku_many",
    "rules --group gate",
    "gate",
    "export",
]
OTHERS = [
    f"{command} --case {case}"
    for group, case in (("transfer", "dream"), ("transfer", "long"), ("ood", "near"))
    for command in (f"rules --group {group}", group)
]
# Names in the record, and the tables they are read from.
TABLES = {"evaluate/test": "evaluate-sudoku_many", "evaluate/gate": "gate"}
OTHER_TABLES = {"transfer/dream": "transfer-dream", "transfer/long": "transfer-long", "ood/near": "ood-near"}

SETTINGS = """
data:
  seed: 5
  tasks:
    sudoku_many: {kind: sudoku_many, params: {min_clues: 6, max_clues: 10}, canvas: null}
    sudoku_large: {kind: sudoku_long, params: {min_clues: 28, max_clues: 31}, canvas: null}
    latin_square:
      kind: sudoku_many
      params: {marker: Q, box_rows: 1, box_columns: 4, min_clues: 6, max_clues: 10}
      canvas: null
  counts: {pretrain: 2000, train: 48, tune: 12, gate: 12, test: 16}
models:
  llada:
    {source: embedded, layout: llada, revision: null, dtype: float32, rows: {sudoku_many: 48, latin_square: 8}}
  dream:
    {source: embedded, layout: dream, revision: null, dtype: float32, rows: {sudoku_many: 24, sudoku_large: 2}}
pretrain:
  seed: 3
  width: 48
  layers: 2
  heads: 2
  inner: 96
  steps: 160
  learning_rate: 0.008
  warmup: 10
headroom: {prompts: 8, orders: 4, cases: {many: {model: llada, task: sudoku_many}}}
domain: {model: llada, tasks: {sudoku_many: 1}}
policy:
  kind: confidence
  inputs: [log_odds, entropy, margin, bound]
  top_k: 0
  hidden_states: true
  width: 16
  heads: 2
  mlp_width: 16
  period: 100.0
  bias: -2.0
  where: masked
  action: bernoulli
  rounded: false
decode: {block_length: null, frontier: null, end_of_text: false, temperature: 1.0, scale: 1.0, alpha: null,
         choose: mode, cache: none}
influence:
  seed: 2
  reference: entropy_bound
  value: 0.4
  chunks: 1
  prompts: 8
  states: 8
  probes: 8
  on_policy_from: null
  validation_share: 0.2
  num_epochs: 1
  batch: 8
  learning_rate: 0.003
distill:
  {seed: 2, reference: entropy_bound, value: 0.4, iterations: 10, prompts: 8, micro_batch: 64, learning_rate: 0.005}
train:
  seed: 4
  objective: grpo
  alpha: 1.0
  reward: multiplicative
  signal: dense
  iterations: 10
  prompts: 4
  group: 4
  experts: 0
  expert_threshold: 0.9
  expert_block: null
  learning_rate: 0.001
  warmup: 2
  min_lr_ratio: 0.1
  weight_decay: 0.0
  clip_eps: 0.5
  clip_norm: 1.0
  num_epochs: 2
  weighting: constant
  normalize_advantage: false
  reference: distilled
  reference_value: null
  divergence: kl
  kl_coef: 0.0
  record_share: 1.0
  temperature: 2.0
  anneal: false
  entropy: 0.2
  force_commit: true
  step_limit: canvas
  micro_batch: 64
  rollout_rows: 16
  validate_every: 4
  save_every: 5
variants: {offsets: {learned: [], distilled: []}, blocks: []}
evaluate: {tasks: [sudoku_many], gate_task: sudoku_many}
sweep:
  seeds: [0, 1]
  block_lengths: [4, null]
  frontiers: [null]
  rules:
    {threshold: [0.7], factor: [0.8], entropy_bound: [0.3], random: [2], left_to_right: [2], confidence: [2],
      margin: [2], entropy: [2]}
  suppress_eos: false
transfer: {dream: {model: dream, task: sudoku_many}, long: {model: dream, task: sudoku_large}}
ood: {near: {model: llada, task: latin_square}}
"""

QUICK = {"factor": [0.8]} | {name: [2] for name in ("random", "left_to_right", "confidence", "margin", "entropy")}

# Three policies that share as little as possible: what is drawn, over which blocks, with which cache, by which reward.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "bernoulli": {},
    "dpls": {
        "policy": {
            "action": "dpls",
            "inputs": ["confidence", "top"],
            "top_k": 2,
            "hidden_states": False,
            "where": "all",
        },
        "decode": {"block_length": 4, "choose": "sample", "cache": "dual", "alpha": 3.0},
        "distill": {"reference": "threshold", "value": 0.8},
        "train": {
            "alpha": [0.5, 3.0],
            "reward": "additive",
            "experts": 1,
            "expert_block": 8,
            "normalize_advantage": True,
            "weighting": "row",
            "temperature": 1.5,
            "anneal": True,
            "entropy": None,
            "force_commit": False,
            "step_limit": "block",
        },
        "sweep": {"block_lengths": [4], "rules": QUICK},
    },
    "feature": {
        "policy": {"kind": "feature", "heads": 2, "mlp_width": 16, "hidden": 1, "top_k": 3, "shortlist": 3},
        "distill": {"reference": "top_k_random", "value": 3},
        "train": {
            "objective": "upo",
            "alpha": 0.0,
            "kl_coef": 0.1,
            "reference": "top_k_random",
            "reference_value": 3,
            "record_share": 0.5,
            "temperature": 0.8,
            "entropy": None,
        },
        "sweep": {"block_lengths": [None], "rules": QUICK},
    },
}


def figures(folder: Path, threads: int = 1) -> dict[str, Any]:
    """Run everything in an empty folder; every figure by its name."""
    for variant in VARIANTS:
        _write_settings(folder / variant, variant)
    first, *others = VARIANTS
    _run(folder, [(first, command) for command in BASE], threads)
    for variant in others:
        shutil.copytree(folder / first / OUTPUTS, folder / variant / OUTPUTS)
    _run(folder, [(v, c) for v in VARIANTS for c in (*POLICY, *(OTHERS if v == first else ()))], threads)
    found = dict(_shared_figures(folder / first / OUTPUTS))
    for variant in VARIANTS:
        tables = TABLES | (OTHER_TABLES if variant == first else {})
        found |= {f"{variant}/{name}": value for name, value in _policy_figures(folder / variant / OUTPUTS, tables)}
    return found


def _write_settings(folder: Path, variant: str) -> None:
    folder.mkdir()
    settings = yaml.safe_load(SETTINGS)
    for section, values in VARIANTS[variant].items():
        settings[section] = values if "kind" in values else settings[section] | values
    settings = {"profile": OUTPUTS.name, **settings}
    (folder / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def _run(folder: Path, commands: list[tuple[str, str]], threads: int) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "UNMASK_"))}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(threads),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
    }
    words = json.dumps([(str(folder / variant), command) for variant, command in commands])
    done = subprocess.run(
        [sys.executable, "-c", COMMAND_LINE, words], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"


def _shared_figures(outputs: Path) -> Iterator[tuple[str, Any]]:
    for path in sorted((outputs / "data").rglob("*.jsonl")):
        rows = [(row["prompt"], row["answer"]) for row in _lines(path)]
        yield f"data/{path.parent.name}.{path.stem}", hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    for name in ("prepare", "pretrain-llada", "pretrain-dream"):
        yield from _flat(_json(outputs / "metrics" / f"{name}.json"), name)
    headroom = _json(outputs / "headroom" / "many.json")
    yield from _flat({name: headroom[name] for name in ("order", "speed")}, "headroom/llada/sudoku_many")
    for name in ("llada", "dream"):
        yield from _weights(outputs / "pretrain" / name / "model.safetensors", f"weights/{name}")


def _policy_figures(outputs: Path, tables: dict[str, str]) -> Iterator[tuple[str, Any]]:
    for stage in ("distill", "train"):
        yield from _flat(_json(outputs / "metrics" / f"{stage}.json"), stage)
        yield from _weights(outputs / stage / "policy" / "policy.safetensors", f"{stage}/weights")
    for row in _lines(outputs / "train" / "metrics.jsonl"):
        yield from _flat(row, f"rounds/{row['step']}")
    for name, table in tables.items():
        with (outputs / "tables" / f"{table}.csv").open(encoding="utf-8", newline="") as lines:
            for number, row in enumerate(csv.DictReader(lines)):
                yield from _flat({column: _number(text) for column, text in row.items()}, f"{name}/{number}")
    for number, row in enumerate(_lines(outputs / "evaluate" / "evaluate-sudoku_many" / "decodes.jsonl")):
        shown = f"{row['family']} {row['setting']} {row['prompt']} {row['text']} {' '.join(map(str, row['order']))}"
        yield f"decodes/{number}", shown
    parity = _json(outputs / "metrics" / "export.json")
    del parity["bytes"]  # the file's description may grow
    yield from _flat(parity, "export")
    yield from _scores(outputs / "export" / "policy.onnx")


def _scores(path: Path) -> Iterator[tuple[str, Any]]:
    """What the exported file answers to inputs that depend on nothing but their place and shape."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    sizes = {"batch": 3, "length": 8, "sequence": 12}
    given = {}
    for place, wanted in enumerate(session.get_inputs()):
        shape = [int(sizes.get(str(size), size) or 0) for size in wanted.shape]
        ramp = np.arange(math.prod(shape)).reshape(shape)
        values = {
            "tensor(float)": (0.5 + 0.49 * np.sin(1.7 * ramp + place)).astype(np.float32),
            "tensor(bool)": ramp % 5 != 1,
            "tensor(int64)": 4 + ramp % 5,
        }
        given[wanted.name] = values[wanted.type]
    (scores,) = session.run(None, given)
    for number, score in enumerate(np.asarray(scores).ravel().tolist()):
        yield f"scores/{number}", score


def _weights(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    """Figures of a file of tensors that their names and their order do not change."""
    tensors = [np.asarray(tensor, np.float64) for tensor in load_file(path).values()]
    yield f"{name}/digest", hashlib.sha256(b"".join(sorted(t.tobytes() for t in tensors))).hexdigest()
    yield f"{name}/sum", math.fsum(float(t.sum()) for t in tensors)
    yield f"{name}/squares", math.fsum(float((t * t).sum()) for t in tensors)


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """(name, value) of every leaf but the clocks."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not str(key).startswith(CLOCKS):
                yield from _flat(inner, f"{name}/{key}")
    elif isinstance(value, list):
        yield from _flat(dict(enumerate(value)), name)
    else:
        yield name, value


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
