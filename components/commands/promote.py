"""Publish, judge, register, and move the alias `champion` where the gate allows it.

Not a DVC stage: it changes the registry, not a file. The rules are in `components/evaluation/gate.py`. This module
brings them the evidence and carries out the verdict. It prints nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.core.errors import DataError
from components.evaluation import gate
from components.evaluation.results import EvalResult, read_results
from components.stages.common.runfile import content_hash, read_run
from components.tracking import model, registry, store
from components.tracking.publish import publish

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

Reevaluate = Callable[[Path], EvalResult]
"""The champion's ONNX file -> its result on this gate set."""


@dataclass(frozen=True)
class Pick:
    """Which row of evaluate/prompts.jsonl is the policy as it will decode; None where there is only one."""

    task: str
    setting: str | None = None
    block_length: int | None = None
    choose: str | None = None


def promote(
    outputs: Path, root: Path, pick: Pick, dry_run: bool = False, reevaluate: Reevaluate | None = None
) -> gate.Verdict:
    """The verdict on the policy in `outputs` (`outputs/<profile>`), carried out unless dry_run.

    Every policy becomes a version, a refused one too, tagged with reason and figures; a second call changes nothing.
    A dry run writes nowhere, not even runs. reevaluate is asked where the champion's results cannot be paired with
    these. DataError where the evidence is missing.
    """
    run = read_run(outputs / "train" / "run.json")
    challenger = read_evidence(outputs, pick)
    uri = store.tracking_uri(root)
    path = store.database(uri)
    if dry_run and path is not None and not path.exists():  # connecting would make one
        return gate.decide(challenger, None)
    run_id = None if dry_run else publish(outputs, root)
    client = store.connect(uri)
    with nullcontext() if dry_run else store.lock(uri, "promote"):
        present = registry.champion(client, run["profile"])
        known = registry.find(client, run["profile"], challenger.identity)
        verdict = _judge(client, challenger, present, known, _evaluator(present, uri, reevaluate))
        verdict = replace(verdict, run_id=run_id, version=str(known.version) if known else None)
        return verdict if dry_run else _carry_out(client, verdict, challenger, run, root)


def read_evidence(outputs: Path, pick: Pick) -> gate.Evidence:
    """The gate's results, the exported policy's identity and the hash of the prompts."""
    results = [r for r in read_results(outputs / "evaluate" / "gate" / "results.jsonl") if r.task == pick.task]
    wanted = {"setting": pick.setting, "block_length": pick.block_length, "choose": pick.choose}
    wanted = {name: value for name, value in wanted.items() if value is not None}
    learned = [r for r in results if r.family == "learned"]
    picked = [r for r in learned if all(getattr(r, name) == value for name, value in wanted.items())]
    if len(picked) != 1:
        have = [{name: getattr(r, name) for name in ("setting", "block_length", "choose")} for r in learned]
        raise DataError(
            f"{len(picked)} learned results of task {pick.task!r} on the gate split match {wanted}. Pick one of {have}."
        )
    policy = gate.Cell.of_result(picked[0])
    return gate.Evidence(
        identity=model.identity(outputs / "export" / "policy.onnx"),
        task=pick.task,
        prompts=_prompts_hash(outputs / "data" / "tasks" / pick.task / "gate.jsonl", policy.correct_P.size),
        policy=policy,
        heuristics=tuple(gate.Cell.of_result(r) for r in results if not r.is_policy),
    )


def _prompts_hash(path: Path, count: int) -> str:
    """Of the first `count` problems of the split, which are the ones that are evaluated."""
    if not path.exists():
        raise DataError(f"{path} is not there; it tells whether two policies saw the same prompts; run `dvc repro`")
    with path.open("rb") as lines:
        return hashlib.sha256(b"".join(islice(lines, count))).hexdigest()


def _evaluator(present: ModelVersion | None, uri: str, reevaluate: Reevaluate | None) -> Callable[[], gate.Cell] | None:
    if present is None or reevaluate is None:
        return None
    reference = f"models:/{present.name}/{present.version}"
    return lambda: gate.Cell.of_result(reevaluate(registry.policy_path(reference, uri)))


def _judge(
    client: MlflowClient,
    challenger: gate.Evidence,
    present: ModelVersion | None,
    known: ModelVersion | None,
    evaluate_champion: Callable[[], gate.Cell] | None,
) -> gate.Verdict:
    if known is not None and registry.WITHDRAWN in known.tags:
        how = f"{known.tags[registry.WITHDRAWN]}; `rollback` to version {known.version} makes it live again"
        return gate.Verdict(False, f"this policy was withdrawn: {how}", gate.judge(challenger))
    if present is None:
        return gate.decide(challenger, None)
    identity = present.tags.get("identity", "")
    if challenger.identity == identity:
        return gate.decide(challenger, challenger)
    champion = registry.load_evidence(client, present)
    why_not = "its results were not kept" if champion is None else gate.incomparable(challenger, champion)
    if why_not and evaluate_champion is not None:
        champion = replace(challenger, identity=identity, policy=evaluate_champion())
    if champion is None:
        reason = f"no comparison with the champion, version {present.version}: {why_not}; re-evaluate it"
        return gate.Verdict(False, reason, gate.judge(challenger))
    return gate.decide(challenger, champion)


def _carry_out(
    client: MlflowClient, verdict: gate.Verdict, challenger: gate.Evidence, run: Mapping[str, Any], root: Path
) -> gate.Verdict:
    lock = root / "dvc.lock"
    tags = {
        "commit": str(run["commit"]),
        "dirty": str(run["dirty"]),
        "dependencies": str(run["identity"]),
        "lock": content_hash(lock) if lock.exists() else "none",
    }
    version, _ = registry.register(client, run["profile"], challenger.identity, str(verdict.run_id), tags)
    registry.save_evidence(client, version, challenger)
    verdict = replace(verdict, version=str(version.version))
    if verdict.promote or not verdict.live:  # what is live tells already why it is
        said = {"gate": "promoted" if verdict.promote else "refused", "gate.reason": verdict.reason}
        figures = {name: round(value, 6) for name, value in verdict.figures.items()}
        registry.set_tags(client, version, said | {"gate.figures": json.dumps(figures)})
        registry.describe(client, version, str(verdict))
    if verdict.promote:
        registry.set_champion(client, version)
    return verdict
