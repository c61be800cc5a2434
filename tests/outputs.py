"""A profile's outputs as the pipeline leaves them, as far as a promotion reads them: small, and right in every hash."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from components.commands.evidence import Pick
from components.core.files import read_json, write_json, write_text
from components.evaluation.results import KINDS, OPTIONAL, EvalResult, write_results
from components.export.onnx_file import VERSION
from components.policies.store import content_hash as policy_hash
from components.stages.common.runfile import content_hash

PROMPTS, CANVAS = 200, 16
DECODE = {"block_length": 16, "choose": "mode", "temperature": 1.0, "alpha": None}
RULES = frozenset({("threshold", "0.8", 16), ("threshold", "0.9", 16)})
PICK = Pick("tiny", "sudoku", CANVAS, PROMPTS, 2.0, RULES, DECODE)


def read_table(path: Path) -> list[EvalResult]:
    """The rows of a table that ``write_table`` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    read: dict[Any, Any] = {str: str, int: int}  # the others are floats, NaN where empty
    heads: list[dict[str, Any]] = [
        {name: read.get(kind, lambda text: float(text or "nan"))(row[name]) for name, kind in KINDS.items()}
        for row in rows
    ]
    more: list[dict[str, Any]] = [{name: int(row.get(name) or 0) for name in OPTIONAL} for row in rows]
    return [EvalResult(**head, **optional) for head, optional in zip(heads, more, strict=True)]


def policy(weight: float = 1.0, temperature: float = 1.0, note: str = "", producer: str = "one") -> onnx.ModelProto:
    """An exported policy: utilities are ``weight`` times the log odds."""
    floats, bools = (TensorProto.FLOAT, ["batch", "length"]), (TensorProto.BOOL, ["batch", "length"])
    raw = np.array([weight], np.float32).tobytes()
    node = helper.make_node("Mul", ["log_odds_BL", "w"], ["utilities_BL"], name="score", doc_string=note)
    entry = node.metadata_props.add()
    entry.key, entry.value = "stack_trace", note
    graph = helper.make_graph(
        [node],
        "policy",
        [
            helper.make_tensor_value_info("masked_BL", *bools),
            helper.make_tensor_value_info("log_odds_BL", *floats),
        ],
        [helper.make_tensor_value_info("utilities_BL", *floats, doc_string=note)],
        [helper.make_tensor("w", TensorProto.FLOAT, [1], raw, raw=True)],
    )
    made = helper.make_model(graph, producer_name=producer, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    said = {
        "unmask.version": VERSION,
        "unmask.policy": {"kind": "confidence", "speed": 1.0},
        "unmask.needs": {"statistics": ["log_odds"]},
        "unmask.action": {"kind": "bernoulli", "temperature": temperature, "scale": 1.0},
    }
    helper.set_model_props(made, {"commit": note} | {name: json.dumps(value) for name, value in said.items()})
    return made


def result(family: str, setting: str, accuracy: float, nfe: float, prompts: int = PROMPTS) -> EvalResult:
    """A policy or rule that is right on the first prompts and takes the same number of passes on all."""
    correct = (np.arange(prompts) < round(accuracy * prompts)).astype(float)
    figures: dict[str, Any] = dict.fromkeys(("accuracy", "accuracy_low", "accuracy_high"), accuracy)
    figures |= dict.fromkeys(("nfe", "nfe_low", "nfe_high"), nfe)
    figures |= {"dense": accuracy, "tokens_per_second": 1.0, "unfinished": 0.0}
    where = {"task": "sudoku", "denoiser": "mini-llada", "split": "gate", "family": family, "setting": setting}
    head: dict[str, Any] = where | {"block_length": 16, "choose": "mode", "prompts": prompts, "seeds": 1}
    return EvalResult(**head, **figures, correct_P=correct, nfe_P=np.full(prompts, float(nfe)))


def results(accuracy: float = 0.88, nfe: float = 5.75, fast: float = 0.65) -> list[EvalResult]:
    """The envelope at 5.75 passes is .775 (with `fast` left alone)."""
    rules = [result("threshold", "0.8", fast, 5), result("threshold", "0.9", 0.9, 6.5)]
    return [*rules, result("learned", "mode", accuracy, nfe), result("learned", "sample", 0.1, 1)]


def write_trained(outputs: Path, weight: float = 1.0) -> None:
    """Stage train's policy; its run.json names it, if it is there."""
    write_json(outputs / "train" / "policy" / "policy.json", {"kind": "confidence"})
    write_text(outputs / "train" / "policy" / "policy.safetensors", f"weights {weight}")
    if (outputs / "train" / "run.json").exists():
        run = read_json(outputs / "train" / "run.json")
        write_json(outputs / "train" / "run.json", run | {"policy_hash": policy_hash(outputs / "train" / "policy")})


def write_gate(outputs: Path, found: Sequence[EvalResult], **changes: Any) -> None:
    """Stage gate's results on the policy that is there."""
    write_results(outputs / "evaluate" / "gate" / "results.jsonl", found)
    run = {
        "settings": {"decode": DECODE | changes},
        "policy_hash": policy_hash(outputs / "train" / "policy"),
        "prompts_hash": content_hash(outputs / "data" / "tasks" / "sudoku" / "gate.jsonl"),
        "file_hash": content_hash(outputs / "evaluate" / "gate" / "results.jsonl"),
    }
    write_json(outputs / "evaluate" / "gate" / "run.json", run)


def write_export(outputs: Path, weight: float = 1.0, **changes: Any) -> None:
    """Stage export's file of the policy that is there, and a state that it read."""
    path, trained = outputs / "export" / "policy.onnx", policy_hash(outputs / "train" / "policy")
    path.parent.mkdir(parents=True, exist_ok=True)
    made = policy(weight)
    made.metadata_props.add(key="policy_hash", value=trained)
    onnx.save(made, path)
    masked = [place % 4 > 0 for place in range(CANVAS)]
    log_odds = [round(0.25 * place - 1, 2) if open_ else 0.0 for place, open_ in enumerate(masked)]
    write_json(path.with_name("state.json"), {"masked_BL": [masked], "log_odds_BL": [log_odds]})
    run = {"settings": {"decode": DECODE | changes}, "policy_hash": trained, "file_hash": content_hash(path)}
    write_json(path.with_name("run.json"), run)


def write_prompts(outputs: Path, name: str = "", count: int = PROMPTS) -> None:
    text = "".join(json.dumps({"prompt": f"{name}{i}"}) + "\n" for i in range(count))
    write_text(outputs / "data" / "tasks" / "sudoku" / "gate.jsonl", text)
    write_text(outputs / "data" / "domain" / "sudoku" / "train.jsonl", text)
