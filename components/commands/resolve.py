"""Objects named on the command line: a policy, the task of a prompt, the dLLM."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import DataError, SettingsError
from ..core.imports import is_import_path, named

if TYPE_CHECKING:
    from ..denoisers import Encoder, LoadedDenoiser
    from ..evaluation.evaluate import Candidate
    from ..settings import Decode, Settings
    from ..stages.common.workspace import Workspace
    from ..tasks.example import Example, Task


def candidate(name: str, workspace: Workspace, settings: Settings, choose: str, block: int | None = None) -> Candidate:
    """The policy of this name: a rule with its number (``threshold:0.9``, ``confidence``), a policy folder, an .onnx
    file, an import path, or ``models:/NAME@ALIAS``.

    SettingsError if it is none of these, DataError or CheckpointError if it does not load.
    """
    from ..evaluation.evaluate import Candidate

    block = block or settings.decode.block_length
    policy, frontier = loaded(name, workspace.root, settings.decode), settings.decode.frontier
    if policy is not None:
        return Candidate("policy", name, policy, block, choose, frontier)
    return Candidate(name.partition(":")[0], name, rule(name), block, frontier=frontier)


def loaded(name: str, root: Path, decode: Decode | None = None) -> Any:
    """A policy that is no rule: models:/NAME@ALIAS, an .onnx file, an import path or a folder; else None.

    root: of the repository, whose registry `models:/` names. decode: test-time settings of a policy from a folder.
    """
    from ..policies.rules import decoders

    if name.startswith("models:/"):
        from ..export import OnnxPolicy
        from ..tracking import registry, store

        return OnnxPolicy(registry.policy_path(name, store.tracking_uri(root)))
    if name.endswith(".onnx"):
        from ..export import OnnxPolicy

        return OnnxPolicy(Path(name))
    if is_import_path(name) and name.partition(":")[0] not in decoders():
        return _made(name)
    if Path(name).is_dir():
        from ..policies import store as policies
        from ..stages.common.models import with_decode_settings

        policy = policies.load(Path(name))
        return policy if decode is None else with_decode_settings(policy, decode)
    return None


def place(policies: Iterable[Any], denoiser: Any) -> None:
    """Move the policies that are modules to the denoiser's device. A rule and an ONNX policy have no weights to move.

    A command loads its policies first, so that a wrong name costs no loading of a dLLM.
    """
    from torch.nn import Module

    # Not in ``rollout``: a module there may be a user's own, and its optimizer's state would stay behind.
    for policy in policies:
        if isinstance(policy, Module):
            policy.to(denoiser.device)


def _made(name: str) -> Any:
    """The policy that the class or function at an import path makes. SettingsError where it makes none."""
    from ..policies.check import missing_parts

    made = named(name)
    try:
        inspect.signature(made).bind()
    except (TypeError, ValueError) as error:
        raise SettingsError(
            f"{name} cannot be called without arguments ({error}). Name what makes a policy."
        ) from error
    policy = made()
    if missing := missing_parts(policy):
        what = f"{name} makes a {type(policy).__name__}, which has no {', '.join(missing)}"
        raise SettingsError(f"{what}. Name what makes a policy; components/policies/protocol.py has its parts.")
    return policy


def rule(name: str) -> Any:
    """The rule that ``name`` or ``name:number`` is; SettingsError names the nearest one, or the range of its number."""
    from ..policies.rules import check_number, decoders, heuristic
    from ..settings import nearest

    kind, colon, number = name.partition(":")
    if kind not in decoders():
        raise SettingsError(
            f"{name!r} is no rule, policy folder, .onnx file or models:/NAME@ALIAS"
            f"{nearest(kind, list(decoders()))}. Use one of these, or a rule: {', '.join(decoders())}."
        )
    if not colon:
        return heuristic(kind)
    try:
        value = float(number)
    except ValueError:
        value = float("nan")
    check_number(kind, value, name)
    return heuristic(kind, value)


def named_task(settings: Settings, name: str) -> Task:
    """The task of this name in the settings, else in the library. SettingsError for an unknown one."""
    from ..settings.data import TaskSettings
    from ..stages.common.cases import item_of
    from ..tasks import TASKS

    tasks = settings.data.tasks
    if name in TASKS and name not in tasks:
        tasks = {name: TaskSettings(kind=name, params={}, canvas=None)}
    return item_of(tasks, "data.tasks", name).build()


def task_for(settings: Settings, prompt: str, name: str | None = None) -> tuple[str, Task]:
    """The task of this name, else the one whose marker the prompt begins with, else the gate task.

    SettingsError for an unknown name, DataError where the task does not write such prompts.
    """
    if name is None:
        tasks = settings.data.tasks.items()
        marked = [found for found, task in tasks if task.marker and prompt.startswith(task.marker)]
        name = marked[0] if marked else settings.evaluate.gate_task
    task = named_task(settings, name)
    _check_prompt(name, task, prompt)
    return name, task


def _check_prompt(name: str, task: Task, prompt: str) -> None:
    unknown = sorted(set(prompt) - set(task.alphabet)) if task.alphabet else []
    if unknown or not prompt:
        raise DataError(
            f"prompt {prompt!r} holds {unknown or 'nothing'}; task {name} is written in {task.alphabet!r}. "
            f"Write one like {task.sample(0, 0).prompt}"
        )
    # Prompts of a grid are of one length, and another would be no grid.
    sizes = {len(task.sample(i, 0).prompt) for i in range(16)} if task.alphabet else set()
    if len(sizes) == 1 and len(prompt) not in sizes:
        raise DataError(
            f"prompt {prompt!r} has {len(prompt)} characters, those of task {name} have {sizes.pop()}. "
            f"Write one like {task.sample(0, 0).prompt}"
        )


def example_for(workspace: Workspace, name: str, task: Task, prompt: str) -> tuple[Example, bool]:
    """The example with this prompt, and whether a text can be scored by it.

    It can where the prompt is one of the data's, or where any valid completion is right.
    """
    from ..tasks.example import Example, read_examples
    from ..tasks.queens import Queens
    from ..tasks.sudoku import SudokuMany
    from ..tasks.worded import SudokuPair

    for split in ("test", "gate", "tune"):
        path = workspace.task(name).split(split)
        for example in read_examples(path) if path.exists() else ():
            if example.prompt == prompt:
                return example, True
    return Example(name, prompt, ""), isinstance(getattr(task, "plain", task), SudokuMany | SudokuPair | Queens)


def active_profile(anywhere: bool = False) -> tuple[Workspace, Settings]:
    """Workspace and settings of the current folder.

    anywhere: outside a repository use the settings of the package, for commands that need no outputs. Else
    SettingsError.
    """
    from .. import settings as package
    from ..stages.common.workspace import Workspace

    path = Path("params.yaml")
    if anywhere and not path.exists():
        path = Path(package.__file__).with_name("params.yaml")
    settings = package.read(path)
    return Workspace(Path.cwd(), settings.profile), settings


def open_dllm(workspace: Workspace, settings: Settings, model: str | None) -> tuple[Any, Any]:
    """Denoiser and encoder: of the profile, or of ``model``, see ``open_named``."""
    if model is None:
        from ..stages.common.models import open_cached

        return open_cached(workspace, settings.domain.model, settings.decode)
    denoiser, encoder = open_named(model, settings.models[settings.domain.model].dtype)
    return denoiser, encoder.stopping() if settings.decode.end_of_text else encoder


def open_named(model: str, dtype: str, checkpoint: bool = True) -> tuple[LoadedDenoiser, Encoder]:
    """Denoiser and encoder of a folder or a hub name, NAME@REVISION for one of its commits, tags or branches.

    dtype: float32 for "auto". checkpoint: see ``device_name``. SettingsError for an empty revision.
    """
    from ..core.devices import device_to_load
    from ..denoisers import load

    name, revision = model, None
    if not Path(model).exists() and "@" in model:
        name, _, revision = model.rpartition("@")
        if not revision:
            raise SettingsError(f"{model} names no revision. Write NAME@REVISION, or the name alone.")
    return load(name, device_to_load(checkpoint), "float32" if dtype == "auto" else dtype, revision)
