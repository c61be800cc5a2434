"""Stage rules: the swept heuristics on one case. It does not depend on the policy: a new policy needs no new sweep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core import processes
from ..core.errors import DataError
from ..core.files import read_json, write_json
from ..evaluation.results import read_results, write_results
from ..settings import Decode
from ..settings import Sweep as SweepSettings
from .common.cases import EvalCase
from .common.progress import progress
from .common.runfile import content_hash
from .common.workspace import Workspace

if TYPE_CHECKING:
    from ..denoisers import Encoder
    from ..evaluation.evaluate import Sweep
    from ..evaluation.results import EvalResult


def rules(workspace: Workspace, decode: Decode, sweep: SweepSettings, case: EvalCase) -> dict[str, Any]:
    """P/rules/<case>/results.jsonl: one result per rule, number and block length, with the cache of the policy.

    sources.json beside it: what the results were made of, which ``rule_results`` compares.
    """
    with processes.joined():
        return _rules(workspace, decode, sweep, case)


def _rules(workspace: Workspace, decode: Decode, sweep: SweepSettings, case: EvalCase) -> dict[str, Any]:
    from ..decode.prompts import Prompts
    from ..evaluation.evaluate import Scope, table
    from .common.models import open_cached

    begun = sources(workspace, decode, sweep, case)
    denoiser, encoder = open_cached(workspace, case.model, decode)
    data = workspace.task(case.task)
    prompts = Prompts.of(data.task(), data.examples(case.split), encoder)
    candidates = sweep_of(sweep, encoder).candidates(prompts.longest, case.wide)
    with progress(f"rules {case.stem}", len(candidates), processes.rank() == 0) as tick:
        scope = Scope(case.task, case.model, case.split)
        results = table(denoiser, candidates, prompts, sweep.seeds, scope, lambda _: tick(""))
    if processes.rank() > 0:
        return {}
    folder = workspace.outputs / "rules" / case.stem
    write_results(folder / "results.jsonl", results)
    write_json(folder / "sources.json", begun | {"results": content_hash(folder / "results.jsonl")})
    return {"rules": len(results)}


def rule_results(workspace: Workspace, decode: Decode, sweep: SweepSettings, case: EvalCase) -> list[EvalResult]:
    """The results of stage rules for the case. DataError where they are of another dLLM, sweep or prompts.

    DVC runs the stage again by itself; one who types the commands may have left it out.
    """
    folder = workspace.outputs / "rules" / case.stem
    made, now = read_json(folder / "sources.json"), sources(workspace, decode, sweep, case)
    now["results"] = content_hash(folder / "results.jsonl")
    if differing := [name for name, value in now.items() if made.get(name) != value]:
        raise DataError(
            f"{folder / 'results.jsonl'} was made from other sources ({', '.join(differing)}) than are there now. "
            f"Run `unmask rules --group {case.group}{f' --case {case.name}' * bool(case.name)}` first."
        )
    return read_results(folder / "results.jsonl")


def sources(workspace: Workspace, decode: Decode, sweep: SweepSettings, case: EvalCase) -> dict[str, Any]:
    """The content hashes of the case's dLLM and prompts, and the settings of its sweep."""
    chosen = sweep.model_dump(mode="json") | {"cache": decode.cache, "end_of_text": decode.end_of_text}
    return {
        "dLLM": content_hash(workspace.outputs / "pretrain" / case.model),
        "prompts": content_hash(workspace.task(case.task).split(case.split)),
        "sweep": chosen,
    }


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
