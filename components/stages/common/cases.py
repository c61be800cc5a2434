"""Evaluation cases: which task and split, over which dLLM, for the stages evaluate, gate, transfer, ood and rules."""

from __future__ import annotations

from dataclasses import dataclass

from components.core.errors import SettingsError
from components.settings import Settings, nearest

GROUPS = ("evaluate", "gate", "transfer", "ood")


@dataclass(frozen=True)
class EvalCase:
    """group: the stage it belongs to. name: of the case in it. wide: whether every rule is swept in blocks too."""

    group: str
    name: str
    model: str
    task: str
    split: str
    wide: bool

    @property
    def stem(self) -> str:
        """The name of its folders and tables."""
        return f"{self.group}-{self.name}" if self.name else self.group


def case_of(settings: Settings, group: str, name: str = "") -> EvalCase:
    """The case that the settings define. SettingsError for an unknown group or name."""
    if group not in GROUPS:
        raise SettingsError(
            f"group={group!r} is unknown{nearest(group, list(GROUPS))}. Use one of {', '.join(GROUPS)}."
        )
    if group == "gate":
        return EvalCase("gate", "", settings.domain.model, settings.evaluate.gate_task, "gate", wide=False)
    if group == "evaluate":
        known = {task: (settings.domain.model, task) for task in settings.evaluate.tasks}
    else:
        known = {key: (case.model, case.task) for key, case in getattr(settings, group).items()}
    if name not in known:
        raise SettingsError(
            f"{group} has no case {name!r}{nearest(name, list(known))}. Use one of {', '.join(known) or 'none'}, or "
            f"add it to {group} in params.yaml."
        )
    model, task = known[name]
    return EvalCase(group, name, model, task, "test", wide=group == "evaluate")
