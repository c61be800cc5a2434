"""Stages evaluate, gate, transfer and ood: the trained policies on one case, beside the rules that stage rules swept.

evaluate: the domain's dLLM, test prompts. gate: its gate prompts, by which a policy is promoted. transfer: another dLLM
or a longer canvas. ood: a task that the policy was not trained on.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..core import processes
from ..core.files import write_lines
from ..evaluation.results import EvalResult, write_results, write_table
from ..policies.rules import PAIR_ROWS, POLICIES
from ..settings import Decode, Domain, Sweep, Variants
from .common.cases import EvalCase
from .common.progress import progress
from .common.runfile import content_hash, describe_run, write_run
from .common.workspace import Workspace
from .rules import rule_results, sweep_of

if TYPE_CHECKING:
    from ..decode.prompts import Prompts
    from ..denoisers import Denoiser
    from ..evaluation.evaluate import Candidate
    from ..policies.store import LearnedPolicy

STAGE_OF = {"learned": "train", "distilled": "distill", "influence": "influence"}
SHOWN = 8  # prompts per task whose decodes are kept for the pages


def evaluate(
    workspace: Workspace, domain: Domain, decode: Decode, sweep: Sweep, variants: Variants, case: EvalCase
) -> dict[str, Any]:
    """P/evaluate/<case>/{results.jsonl, decodes.jsonl}, P/tables/<case>.csv; metrics per policy: see ``summary``.

    run.json beside the results has the hashes of the policy, the prompts and the results, which a promotion compares.
    Several processes share the prompts of each policy, and the main one writes.
    """
    with processes.joined():
        return _evaluate(workspace, domain, decode, sweep, variants, case)


def _evaluate(
    workspace: Workspace, domain: Domain, decode: Decode, sweep: Sweep, variants: Variants, case: EvalCase
) -> dict[str, Any]:
    from ..decode.prompts import Prompts
    from ..evaluation.evaluate import Scope, table
    from ..policies import store
    from .common.models import open_cached

    denoiser, encoder = open_cached(workspace, case.model, decode)
    data, trained = workspace.task(case.task), workspace.outputs / "train" / "policy"
    sections = {"domain": domain, "decode": decode, "sweep": sweep, "variants": variants}
    settings = {name: section.model_dump(mode="json") for name, section in sections.items()}
    used = [trained, data.split(case.split)]
    begun = describe_run(case.group, workspace.profile, settings, used, workspace.root)
    processes.require_same(begun.identity, "settings, policy or prompts")
    hashes = {"policy_hash": store.content_hash(trained), "prompts_hash": content_hash(data.split(case.split))}
    swept = rule_results(workspace, decode, sweep, case)
    prompts = Prompts.of(data.task(), data.examples(case.split), encoder)
    candidates = learned(workspace, decode, variants, denoiser, case, foreign=case.model != domain.model)
    with progress(f"evaluate {case.stem}", len(candidates), processes.rank() == 0) as tick:
        scope = Scope(case.task, case.model, case.split)
        policies = table(denoiser, candidates, prompts, sweep.seeds, scope, lambda _: tick(""))
    if processes.rank() > 0:
        return {}
    results = policies + swept
    folder = workspace.outputs / "evaluate" / case.stem
    write_results(folder / "results.jsonl", results)
    write_table(workspace.outputs / "tables" / f"{case.stem}.csv", results)
    if case.group == "evaluate":
        shown = prompts.take(range(min(SHOWN, len(prompts))))
        chosen = candidates + _rivals(policies, results, sweep_of(sweep, encoder).candidates(prompts.longest))
        write_lines(folder / "decodes.jsonl", decodes(denoiser, shown, chosen, case.task))
    figures = summary(results)
    write_run(folder / "run.json", begun.finished(figures, **hashes, file_hash=content_hash(folder / "results.jsonl")))
    workspace.metrics(case.stem, figures)
    return figures


def learned(
    workspace: Workspace, decode: Decode, variants: Variants, denoiser: Denoiser, case: EvalCase, foreign: bool
) -> list[Candidate]:
    """The trained policy by its mode and by sampling, and the starts that ``variants`` names by their mode.

    On a wide case also at every other alpha that a policy was trained for. Then the rows over the trained policy's pair
    shifts that ``variants`` names. foreign: the dLLM is not that of training, so that hidden states mean something
    else. Policies that also read statistics are evaluated without them, feature policies are left out.
    """
    from ..evaluation.evaluate import Candidate
    from ..policies import store
    from ..policies.feature import FeaturePolicy
    from .common.models import with_decode_settings

    candidates: list[Candidate] = []
    for family in sorted(variants.offsets, key=list(POLICIES).index):
        trained = store.load(workspace.outputs / STAGE_OF.get(family, "train") / "policy").to(denoiser.device)
        policy = with_decode_settings(trained, decode)
        if foreign and policy.shape.features:
            if isinstance(policy, FeaturePolicy):
                continue
            policy.drop_features(denoiser.width)
        if family in PAIR_ROWS:
            candidates += _pair_rows(workspace, family, policy, decode, variants, case)
            continue
        for choose in ("mode", "sample") if family == "learned" else ("mode",):
            candidates.append(Candidate(family, choose, policy, decode.block_length, choose, decode.frontier))
        if case.wide and not isinstance(policy, FeaturePolicy):
            for alpha in policy.shape.alphas:
                if alpha != decode.alpha:
                    other = with_decode_settings(copy.copy(policy), decode.model_copy(update={"alpha": alpha}))
                    how = (decode.block_length, decode.choose, decode.frontier)
                    candidates.append(Candidate(family, f"alpha={alpha:g}", other, *how))
        candidates += _at_other_speeds(family, policy, decode, variants, case.wide)
    return candidates


def _pair_rows(
    workspace: Workspace, family: str, policy: LearnedPolicy, decode: Decode, variants: Variants, case: EvalCase
) -> list[Candidate]:
    """A rule or control over the trained policy's pair shifts at each of its numbers."""
    from ..evaluation.evaluate import Candidate
    from ..policies.variants import variant
    from ..tasks.graph import graph_of

    def graph() -> tuple[tuple[int, ...], ...]:
        return graph_of(workspace.task(case.task).task())

    how = (decode.block_length, "mode", decode.frontier)
    numbers = variants.offsets[family]
    return [Candidate(family, f"{number:g}", variant(family, policy, number, graph), *how) for number in numbers]


def _at_other_speeds(
    family: str, policy: LearnedPolicy, decode: Decode, variants: Variants, wide: bool
) -> list[Candidate]:
    """A coupled policy at each offset; the trained policy on a wide case in each block length too."""
    from ..evaluation.evaluate import Candidate
    from ..policies.coupled import CoupledPolicy

    found: list[Candidate] = []
    for block in (decode.block_length, *(variants.blocks if wide and family == "learned" else ())):
        name = "" if block == decode.block_length else f"block={block}"
        if name:
            found.append(Candidate(family, name, policy, block, frontier=decode.frontier))
        if isinstance(policy, CoupledPolicy):
            for offset in variants.offsets[family]:
                moved = copy.copy(policy)
                moved.offset = offset
                setting = ",".join(filter(None, [name, f"offset={offset:g}"]))
                found.append(Candidate(family, setting, moved, block, frontier=decode.frontier))
    return found


def summary(results: Sequence[EvalResult]) -> dict[str, Any]:
    """Per trained policy: accuracy, NFE, the front of the rules at that NFE, and the difference."""
    from ..maths.pareto import front_at

    rules = [result for result in results if not result.is_policy]
    figures: dict[str, Any] = {}
    for policy in results:
        if policy.is_policy:
            front = front_at([r.nfe for r in rules], [r.accuracy for r in rules], policy.nfe)
            figures[f"{policy.family}_{policy.setting}"] = {
                "accuracy": policy.accuracy,
                "nfe": policy.nfe,
                "front": front,
                "above_front": policy.accuracy - front,
            }
    return figures


def _rivals(
    policies: Sequence[EvalResult], results: Sequence[EvalResult], swept: Sequence[Candidate]
) -> list[Candidate]:
    """The fastest full-diffusion rule at least as accurate as the learned policy, and max-confidence."""

    longest = max(result.block_length for result in results)
    rules = [result for result in results if not result.is_policy and result.block_length == longest]
    target = policies[0].accuracy if policies else 1.0
    equal = [result for result in rules if result.accuracy >= target]
    chosen = [min(equal, key=lambda result: result.nfe)] if equal else []
    one_by_one = [r for r in rules if (r.family, r.setting) == ("confidence", "1") and r not in chosen]
    whole = {(c.family, c.setting): c for c in swept if c.block_length is None}
    return [replace(whole[r.family, r.setting], choose=r.choose) for r in [*chosen, *one_by_one]]


def decodes(denoiser: Denoiser, prompts: Prompts, candidates: Sequence[Candidate], task: str) -> list[dict[str, Any]]:
    """The prompts, decoded by each candidate: text, order and forwards, for the pages; of a policy with pair shifts
    also ``view``, see ``first_views``."""
    from ..decode.engine import rollout
    from ..decode.job import DecodeOptions
    from ..evaluation.view import first_views
    from ..policies.coupled import draws_by_shifts

    lines: list[dict[str, Any]] = []
    for chosen in candidates:
        job = prompts.job(chosen.block_length, chosen.frontier)
        options = DecodeOptions(choose=chosen.choose, record=draws_by_shifts(chosen.policy))
        decoded = rollout(denoiser, chosen.policy, job, options)
        texts, correct_R, _ = prompts.scores(job, decoded)
        views = first_views(chosen.policy, decoded, list(prompts.lengths))
        for i, example in enumerate(prompts.examples):
            length = prompts.lengths[i]
            line = {
                "task": task,
                "family": chosen.family,
                "setting": chosen.setting,
                "prompt": example.prompt,
                "text": texts[i],
                "gold": example.answer,
                "correct": float(correct_R[i]),
                "nfe": int(decoded.nfe_R[i]),
                "canvas_length": length,
                "order": decoded.order_RL[i, :length].tolist(),
                "tokens": [prompts.encoder.token(t) for t in decoded.canvas_RL[i, :length].tolist()],
            }
            lines.append(line if views[i] is None else line | {"view": views[i]})
    return lines
