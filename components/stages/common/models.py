"""The frozen dLLM of a stage, opened, and prompts encoded for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...core.devices import device_to_load
from ...core.errors import CheckpointError, DataError
from ...core.files import read_json
from ...core.imports import is_import_path, named
from ...decode.prompts import Prompts
from ...denoisers import Denoiser, Encoder, LoadedDenoiser, load, with_cache
from ...policies.protocol import Policy
from ...policies.store import LearnedPolicy
from ...settings import Decode, Domain
from .workspace import Workspace


def open_cached(workspace: Workspace, model: str, decode: Decode) -> tuple[Denoiser, Encoder]:
    """The dLLM of ``open_denoiser`` with the cache ``decode.cache``; ``decode.end_of_text`` sets whether rows stop."""
    denoiser, encoder = open_denoiser(workspace, model)
    return with_cache(denoiser, decode.cache), encoder.stopping() if decode.end_of_text else encoder


def open_denoiser(workspace: Workspace, model: str) -> tuple[LoadedDenoiser, Encoder]:
    """Denoiser and encoder that stage pretrain made or pinned, on the device of ``device_name``."""
    folder = workspace.outputs / "pretrain" / model
    pinned = read_json(folder / "source.json", needs=("source", "dtype", "revision"))
    if not all(value is None or isinstance(value, str) for value in pinned.values()):
        raise DataError(f"{folder / 'source.json'} holds what is no text. Run `dvc repro` to make it.")
    source = pinned["source"] or str(folder)
    if is_import_path(source):
        return _own(source)
    return load(source, device_to_load(bool(pinned["source"])), pinned["dtype"], pinned["revision"])


def _own(source: str) -> tuple[Any, Any]:
    """A user's own dLLM: denoiser and encoder from the named function, checked against the protocol."""
    from ...denoisers import check_denoiser

    denoiser, encoder = named(source)()
    if problems := check_denoiser(denoiser):
        raise CheckpointError(f"{source}: {'; '.join(problems)}. Mend the denoiser, see CONTRIBUTING.md.")
    return denoiser, encoder


def reference_of(name: str, value: float | None) -> Policy:
    """A reference policy by its name in the settings: a heuristic with its one number, or the teacher."""
    from ...policies.rules import heuristic

    return heuristic(name, value)


def with_decode_settings(policy: LearnedPolicy, decode: Decode) -> LearnedPolicy:
    """The policy with the test-time factors of the settings."""
    policy.temperature, policy.scale = decode.temperature, decode.scale
    if decode.alpha is not None:
        policy.speed = decode.alpha
    return policy


def domain_prompts(
    workspace: Workspace, domain: Domain, encoder: Encoder, splits: Sequence[str], share: bool = True
) -> Prompts:
    """Prompts of the domain's tasks, split by split. share: as many of each as the tasks' weights give, else all."""
    total = sum(domain.tasks.values())
    parts = []
    for name, weight in domain.tasks.items():
        data = workspace.domain(name)
        for split in splits:
            examples = data.examples(split)
            count = len(examples) * weight // total if share else len(examples)
            parts.append(Prompts.of(data.task(), examples[:count], encoder))
    joined, *rest = parts
    for part in rest:
        joined = joined + part
    return joined
