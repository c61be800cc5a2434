"""The present champion, decoded again where its stored results cannot be paired with the challenger's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from components.settings import Settings
from components.stages.common.workspace import Workspace, task_of
from components.stages.evaluate import line_of


def reevaluate_on(workspace: Workspace, settings: Settings) -> Callable[[Path], Mapping[str, Any]]:
    """An exported policy -> its line of evaluate/prompts.jsonl on this profile's gate prompts and dLLM."""

    def reevaluate(path: Path) -> Mapping[str, Any]:
        from components.decode.prompts import Prompts
        from components.evaluation.evaluate import Candidate
        from components.evaluation.evaluate import evaluate as decode_all
        from components.export import OnnxPolicy
        from components.stages.common.models import open_cached

        name, decode = settings.evaluate.gate_task, settings.decode
        denoiser, encoder = open_cached(workspace, settings.models, settings.domain.model, decode)
        task = task_of(settings.data, name)
        asked = Prompts.of(task, workspace.examples(name, "gate", settings.data.counts.gate), encoder)
        candidate = Candidate("learned", decode.choose, OnnxPolicy(path), decode.block_length, decode.choose)
        cell = decode_all(denoiser, candidate, asked, settings.evaluate.seeds)
        return line_of(cell, name, "gate", task.canvas_length)

    return reevaluate
