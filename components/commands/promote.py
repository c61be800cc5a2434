"""Publish, judge, register, and move the alias `champion` where the gate allows it.

Not a DVC stage: it changes the registry, not a file. The rules are in `components/evaluation/gate.py`, what they are
applied to is read by `evidence.py`. This module carries out the verdict. It prints nothing. Killed at any step and run
again, it ends where it would have ended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ..evaluation import gate
from ..evaluation.results import EvalResult
from ..stages.common.runfile import RunRecord, content_hash, read_run
from ..tracking import registry, store
from ..tracking.publish import has_verdict, publish, write_verdict
from .evidence import Pick, read_evidence

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

Reevaluate = Callable[[Path], EvalResult]
"""The champion's ONNX file -> its result on this gate set."""
EvaluateChampion = Callable[["ModelVersion"], EvalResult]


def promote(
    outputs: Path, root: Path, pick: Pick, dry_run: bool = False, reevaluate: Reevaluate | None = None
) -> gate.Verdict:
    """The verdict on the policy in `outputs` (`outputs/<profile>`), carried out unless dry_run.

    Every policy becomes a version, a refused one too, tagged with reason and figures. A second call changes nothing,
    but for what a kill left undone. A dry run writes nowhere, not even runs, and needs no write access. reevaluate is
    asked where the champion's results cannot be paired with these. DataError where the evidence is missing,
    PromotionRefused where it is another policy's.
    """
    run = read_run(outputs / "train" / "run.json")
    challenger = read_evidence(outputs, pick)
    uri = store.tracking_uri(root)
    path = store.database(uri)
    if dry_run:
        if path is not None and not path.exists():
            return gate.decide(challenger, None)
        with store.reading(uri) as client:
            return _judged(client, challenger, run.profile, _evaluator(uri, reevaluate))
    run_id = publish(outputs, root)
    client = store.connect(uri)
    with store.lock(uri, "promote"):
        verdict = _judged(client, challenger, run.profile, _evaluator(uri, reevaluate))
        return _carry_out(client, replace(verdict, run_id=run_id), challenger, run, outputs)


def _judged(
    client: MlflowClient, challenger: gate.Evidence, profile: str, evaluate_champion: EvaluateChampion | None
) -> gate.Verdict:
    """The verdict, with the version that the policy has already.

    A champion that is broken serves nobody: it is named in the reason, and no challenger is measured against it.
    """
    known = registry.find(client, profile, challenger.identity)
    present = registry.champion(client, profile)
    broken = registry.defect(client, present) if present is not None else None
    verdict = _judge(client, challenger, None if broken else present, known, evaluate_champion)
    if present is not None and broken and verdict.promote:
        reason = f"level with the heuristics or above; the champion, version {present.version}, does not load: {broken}"
        verdict = replace(verdict, reason=reason)
    return replace(verdict, version=str(known.version) if known else None)


def _evaluator(uri: str, reevaluate: Reevaluate | None) -> EvaluateChampion | None:
    if reevaluate is None:
        return None
    return lambda present: reevaluate(registry.policy_path(f"models:/{present.name}/{present.version}", uri))


def _judge(
    client: MlflowClient,
    challenger: gate.Evidence,
    present: ModelVersion | None,
    known: ModelVersion | None,
    evaluate_champion: EvaluateChampion | None,
) -> gate.Verdict:
    if known is not None and registry.WITHDRAWN in known.tags:
        why = known.tags[registry.WITHDRAWN]
        reason = f"withdrawn ({why}). Run `unmask rollback --version {known.version}` to make it live again"
        return gate.Verdict(False, reason, gate.measure(challenger))
    if present is None:
        return gate.decide(challenger, None)
    identity = present.tags.get("identity", "")
    if challenger.identity == identity:
        return gate.decide(challenger, challenger)
    champion = registry.load_evidence(client, present)
    why_not = "its results were not kept" if champion is None else gate.incomparable(challenger, champion)
    if why_not and evaluate_champion is not None:
        champion = replace(challenger, identity=identity, policy=evaluate_champion(present))
    if champion is None:
        reason = f"no comparison with the champion, version {present.version}: {why_not}. Re-evaluate it"
        return gate.Verdict(False, reason, gate.measure(challenger))
    return gate.decide(challenger, champion)


def _carry_out(
    client: MlflowClient, verdict: gate.Verdict, challenger: gate.Evidence, run: RunRecord, outputs: Path
) -> gate.Verdict:
    lock, run_id, said = outputs.parents[1] / "dvc.lock", str(verdict.run_id), _said(verdict)
    code = {"commit": run.commit, "dirty": str(run.dirty)}
    tags = {**said, "status": "judged", **code, "lock": content_hash(lock) if lock.exists() else "none"}
    version, _ = registry.register(client, run.profile, challenger.identity, run_id, tags)
    registry.save_evidence(client, version, challenger, run_id)
    verdict = replace(verdict, version=str(version.version))
    # What is live, or was withdrawn, tells already why.
    if verdict.promote or not (verdict.live or registry.WITHDRAWN in version.tags):
        if verdict.promote:
            now = datetime.now(UTC).isoformat("T", "seconds")
            said[registry.PROMOTED] = version.tags.get(registry.PROMOTED, now)
        registry.set_tags(client, version, said)
        registry.describe(client, version, str(verdict))
        write_verdict(client, run_id, verdict.headline, outputs)
    elif not has_verdict(client, run_id):  # another training of the same policy
        write_verdict(client, run_id, verdict.headline, outputs)
    if verdict.promote:
        registry.set_champion(client, version)
    return verdict


def _said(verdict: gate.Verdict) -> dict[str, str]:
    """The verdict as tags that can be read in the list of versions."""
    said, figures = {"status": "promoted" if verdict.promote else "refused"}, verdict.figures
    said |= {name: gate.points(figures, name).replace(" points", "") for name in ("score", "gain") if name in figures}
    if figures:
        said |= {"accuracy": f"{100 * figures['accuracy']:.1f} %", "nfe": f"{figures['nfe']:.2f}"}
    return {**said, "reason": verdict.reason}
