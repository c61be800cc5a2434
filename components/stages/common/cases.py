"""Evaluation cases: task, split and dLLM of the stages evaluate, gate, transfer, ood and rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from ...core.errors import SettingsError
from ...settings import Settings, nearest

GROUPS = ("evaluate", "gate", "transfer", "ood")
Item = TypeVar("Item")


@dataclass(frozen=True)
class EvalCase:
    """A case. group: its stage. name: in the stage. wide: whether every rule is also swept in blocks."""

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
    model, task = item_of(known, group, name)
    return EvalCase(group, name, model, task, "test", wide=group == "evaluate")


def item_of(known: Mapping[str, Item], where: str, name: str) -> Item:
    """The item of this name in a mapping of the settings. SettingsError names the nearest one."""
    if name not in known:
        use = f"Use one of {', '.join(known)}, or add" if known else "Add"
        raise SettingsError(f"{where} has no item {name!r}{nearest(name, list(known))}. {use} it in params.yaml.")
    return known[name]
