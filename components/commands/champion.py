"""The present champion, decoded again where its stored results cannot be paired with the challenger's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..evaluation.results import EvalResult
from ..settings import Settings
from ..stages.common.workspace import Workspace


def reevaluate_on(workspace: Workspace, settings: Settings) -> Callable[[Path], EvalResult]:
    """An exported policy -> its result on this profile's gate prompts and dLLM."""

    def reevaluate(path: Path) -> EvalResult:
        from ..decode.prompts import Prompts
        from ..evaluation.evaluate import Candidate, Scope, evaluate
        from ..export import OnnxPolicy
        from ..stages.common.models import open_cached

        decode, domain = settings.decode, settings.domain
        denoiser, encoder = open_cached(workspace, domain.model, decode)
        data = workspace.task(settings.evaluate.gate_task)
        prompts = Prompts.of(data.task(), data.examples("gate"), encoder)
        how = (decode.block_length, decode.choose, decode.frontier)
        candidate = Candidate("learned", decode.choose, OnnxPolicy(path), *how)
        scope = Scope(data.name, domain.model, "gate")
        return evaluate(denoiser, candidate, prompts, settings.sweep.seeds, scope)

    return reevaluate
