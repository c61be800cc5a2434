"""Stage rules: the swept heuristics on one case. It does not depend on the policy: a new policy needs no new sweep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core import processes
from ..evaluation.results import read_results, write_results
from ..settings import Decode
from ..settings import Sweep as SweepSettings
from .common.cases import EvalCase
from .common.progress import progress
from .common.workspace import Workspace

if TYPE_CHECKING:
    from ..denoisers import Encoder
    from ..evaluation.evaluate import Sweep
    from ..evaluation.results import EvalResult


def rules(workspace: Workspace, decode: Decode, sweep: SweepSettings, case: EvalCase) -> dict[str, Any]:
    """P/rules/<case>/results.jsonl: one result per rule, number and block length, with the cache of the policy."""
    with processes.joined():
        return _rules(workspace, decode, sweep, case)


def _rules(workspace: Workspace, decode: Decode, sweep: SweepSettings, case: EvalCase) -> dict[str, Any]:
    from ..decode.prompts import Prompts
    from ..evaluation.evaluate import Scope, table
    from .common.models import open_cached

    denoiser, encoder = open_cached(workspace, case.model, decode)
    data = workspace.task(case.task)
    prompts = Prompts.of(data.task(), data.examples(case.split), encoder)
    candidates = sweep_of(sweep, encoder).candidates(prompts.longest, case.wide)
    with progress(f"rules {case.stem}", len(candidates), processes.rank() == 0) as tick:
        scope = Scope(case.task, case.model, case.split)
        results = table(denoiser, candidates, prompts, sweep.seeds, scope, lambda _: tick(""))
    if processes.rank() > 0:
        return {}
    write_results(workspace.outputs / "rules" / case.stem / "results.jsonl", results)
    return {"rules": len(results)}


def rule_results(workspace: Workspace, case: EvalCase) -> list[EvalResult]:
    """The results of stage rules for the case."""
    return read_results(workspace.outputs / "rules" / case.stem / "results.jsonl")


def sweep_of(sweep: SweepSettings, encoder: Encoder | None) -> Sweep:
    """The heuristics to compare with. encoder: of the dLLM; None where only the names matter."""
    from ..evaluation.evaluate import Sweep

    return Sweep(
        sweep.block_lengths,
        sweep.rules,
        encoder.end_ids if encoder is not None and sweep.suppress_eos else (),
        sweep.frontiers,
        sweep.suppress_eos == "renormalize",
    )
