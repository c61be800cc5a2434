"""The evidence of a promotion: read from the outputs, and refused unless all of it is about one and the same policy.

Stage train, stage gate and stage export name the policy by hash. DVC keeps them in step; whoever ran one of them alone,
or put another file in place, is told here which stage to run again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict

from ..core.errors import CheckpointError, DataError, PromotionRefused
from ..core.files import read_json
from ..evaluation.evidence import Evidence
from ..evaluation.results import EvalResult, Rule, read_results
from ..settings import Settings
from ..stages.common.runfile import content_hash
from ..tracking import model

FOLDERS = {"train": "train", "gate": "evaluate/gate", "export": "export"}


class Trade(TypedDict, total=False):
    alpha: float | list[float]


class Sections(TypedDict, total=False):
    decode: dict[str, Any]
    train: Trade


class Made(TypedDict, total=False):
    """What is read here of a stage's run.json."""

    profile: str
    settings: Sections
    dependencies: dict[str, str]
    policy_hash: str
    prompts_hash: str
    file_hash: str


@dataclass(frozen=True)
class Pick:
    """What the settings ask of a promotion.

    profile: whose registered model it is. task, canvas, prompts: the gate's task, the positions of its canvas, how many
    prompts. alpha: the exponent of speed that is served. rules: those of the sweep that the gate compares with. decode:
    section ``decode``, which also picks the row of the results that is the policy as it will decode.
    """

    profile: str
    task: str
    canvas: int
    prompts: int
    alpha: float
    rules: frozenset[Rule]
    decode: Mapping[str, Any]

    @classmethod
    def of(cls, settings: Settings) -> Pick:
        from ..stages.rules import sweep_of

        task = settings.data.tasks[settings.evaluate.gate_task]
        sweep = sweep_of(settings.sweep, None)
        rules = (
            (c.family, c.setting, c.block_length or task.length) for c in sweep.candidates(task.length, wide=False)
        )
        return cls(
            settings.profile,
            settings.evaluate.gate_task,
            task.length,
            settings.data.counts.gate,
            settings.train.one_alpha if settings.decode.alpha is None else settings.decode.alpha,
            frozenset(rules),
            settings.decode.model_dump(mode="json"),
        )


def read_evidence(outputs: Path, pick: Pick) -> Evidence:
    """What a verdict on the policy in `outputs` is founded on.

    DataError where results are missing or outside their range. PromotionRefused where what was trained, what was
    evaluated and what was exported are not the same policy, or the exported file does not decide.
    """
    runs = {stage: read_json(outputs / folder / "run.json", kind=Made) for stage, folder in FOLDERS.items()}
    _refuse_others(outputs, runs["train"], pick)
    _refuse_other_dllm(outputs, runs["train"])
    _refuse_mixture(outputs, runs, pick.decode)
    file = outputs / "export" / "policy.onnx"
    _refuse_other_file(file, runs["export"])
    gate_file = outputs / "data" / "tasks" / pick.task / "gate.jsonl"
    if runs["gate"].get("prompts_hash") != content_hash(gate_file):
        raise PromotionRefused(f"{gate_file} holds other prompts than stage gate decoded. Run `dvc repro gate`.")
    found = outputs / "evaluate" / "gate" / "results.jsonl"
    results = [r for r in read_results(found) if r.task == pick.task]
    if runs["gate"].get("file_hash") != content_hash(found):  # killed between the two, or put there by hand
        raise PromotionRefused(f"{found} is not what stage gate wrote. Run `dvc repro gate`.")
    policy = _picked(results, pick)
    if policy.correct_P.size != pick.prompts:
        raise DataError(f"{policy.correct_P.size} gate prompts, not {pick.prompts} as asked. Run `dvc repro gate`.")
    evidence = Evidence(
        identity=model.identity(file),
        task=pick.task,
        prompts=_prompts_hash(gate_file, policy.correct_P.size),
        policy=policy,
        heuristics=tuple(r for r in results if not r.is_policy),
        canvas=pick.canvas,
        alpha=pick.alpha,
    )
    evidence.refuse_gaps(pick.rules)
    return evidence


def _refuse_others(outputs: Path, trained: Mapping[str, Any], pick: Pick) -> None:
    """Unless the training was of this profile, and for the speed by which the gate judges it."""
    if trained.get("profile") != pick.profile:
        raise PromotionRefused(
            f"{outputs} holds a training of profile {trained.get('profile')}, params.yaml names {pick.profile}. Name "
            "that profile there, or train this one with `dvc repro --force train`."
        )
    alpha = trained.get("settings", {}).get("train", {}).get("alpha")
    first = alpha[0] if isinstance(alpha, list) and alpha else alpha
    if pick.decode["alpha"] is None and first != pick.alpha:
        raise PromotionRefused(
            f"stage train had train.alpha={alpha}, params.yaml asks for {pick.alpha:g}. Run `dvc repro train`."
        )


def _refuse_other_dllm(outputs: Path, trained: Mapping[str, Any]) -> None:
    """Unless the dLLM is the one that the policy was trained over: the champion would be decoded over another one."""
    for name, digest in trained.get("dependencies", {}).items():
        folder = outputs.parents[1] / name
        if folder.parent == outputs / "pretrain" and content_hash(folder) != digest:
            raise PromotionRefused(f"{folder} is another dLLM than stage train read. Run `dvc repro gate export`.")


def _refuse_mixture(outputs: Path, runs: Mapping[str, Mapping[str, Any]], decode: Mapping[str, Any]) -> None:
    from ..policies.store import content_hash as policy_hash

    trained = policy_hash(outputs / "train" / "policy")
    for stage, run in runs.items():
        if run.get("policy_hash") != trained:
            named = str(run.get("policy_hash"))[:12]
            raise PromotionRefused(
                f"stage {stage} names policy {named}, train/policy is {trained[:12]}. Run `dvc repro {stage}`."
            )
    for stage in ("gate", "export"):
        used = runs[stage].get("settings", {}).get("decode", {})
        if wrong := [name for name, value in decode.items() if used.get(name) != value]:
            name = wrong[0]
            raise PromotionRefused(
                f"stage {stage} decoded with {name}={used.get(name)}, params.yaml asks for {decode[name]}. "
                f"Run `dvc repro {stage}`."
            )


def _refuse_other_file(file: Path, run: Mapping[str, Any]) -> None:
    """Unless the file is the one that passed stage export, opens, and decides."""
    from ..export.onnx_file import OnnxFile
    from ..export.smoke import check_decides

    try:
        check_decides(file)
        said = OnnxFile(file).metadata.get("policy_hash", "none")
    except CheckpointError as error:
        raise PromotionRefused(f"{error} Run `dvc repro export`.") from error
    if run.get("file_hash") != content_hash(file) or said != run["policy_hash"]:
        raise PromotionRefused(f"{file} (policy {said[:12]}) is not what stage export wrote. Run `dvc repro export`.")


def _picked(results: list[EvalResult], pick: Pick) -> EvalResult:
    choose = pick.decode["choose"]
    wanted = {"setting": choose, "block_length": pick.decode["block_length"] or pick.canvas, "choose": choose}
    learned = [r for r in results if r.family == "learned"]
    picked = [r for r in learned if all(getattr(r, name) == value for name, value in wanted.items())]
    if len(picked) != 1:
        have = [{name: getattr(r, name) for name in wanted} for r in learned]
        raise DataError(
            f"{len(picked)} learned results of task {pick.task!r} on the gate split match {wanted}, there are {have}. "
            "Run `dvc repro gate`."
        )
    return picked[0]


def _prompts_hash(path: Path, count: int) -> str:
    """Of the first `count` problems of the split, which are the ones that are evaluated."""
    with path.open("rb") as lines:
        return hashlib.sha256(b"".join(islice(lines, count))).hexdigest()
