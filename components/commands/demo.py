"""`unmask demo`: a released mini dLLM and policy decode puzzles before anything is trained.

Both lie in components/released. ``python -m components.commands.demo`` packs them from the finished run of the active
profile, with the hash of every file, the figures of that run and the rule to compare with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import CheckpointError, DataError
from ..core.files import beside, copy, read_json, write_json

if TYPE_CHECKING:
    from ..evaluation.results import EvalResult
    from ..settings import Settings
    from ..stages.common.workspace import Workspace

FOLDER = Path(__file__).parents[1] / "released"
DLLM, POLICY, CARD = "dllm", "policy.onnx", "release.json"
PROMPTS = 3


def show_demo(folder: Path = FOLDER) -> list[str]:
    """Decode the released prompts by the best rule of equal speed and by the policy; return lines of figures.

    CheckpointError where a file is not the released one.
    """
    from ..denoisers import load
    from ..evaluation.evaluate import Candidate
    from ..export import OnnxPolicy
    from ..tasks import build
    from ..tasks.example import Example
    from .decode import decode_one, display
    from .resolve import rule

    card = read_json(folder / CARD, "Install the package again.")
    check(folder, card)
    opened = load(str(folder / DLLM))
    task = build(card["task"]["kind"], **card["task"]["params"])
    candidates = [
        Candidate(card["rule"].partition(":")[0], card["rule"], rule(card["rule"]), None),
        Candidate("policy", "learned policy", OnnxPolicy(folder / POLICY), None),
    ]
    for example in card["examples"]:
        display([decode_one(c, opened, task, Example(**example), None, True) for c in candidates])
    return [_line(name, figures) for name, figures in card["figures"].items()]


def _line(name: str, figures: dict[str, float]) -> str:
    return (
        f"{name:24} {100 * figures['accuracy']:5.1f} % right in {figures['nfe']:.2f} forward passes "
        f"({figures['prompts']:.0f} test prompts)"
    )


def check(folder: Path, card: dict[str, Any]) -> None:
    """CheckpointError unless every released file has the hash that the card states."""
    from ..stages.common.runfile import content_hash

    for name, wanted in card["files"].items():
        if not (folder / name).exists() or content_hash(folder / name) != wanted:
            raise CheckpointError(f"{folder / name} is not the released file. Install the package again.")


def pack(workspace: Workspace, settings: Settings, folder: Path = FOLDER) -> None:
    """Copy dLLM and exported policy of a finished run, and write the card. DataError where the run is not finished."""
    from ..evaluation.results import read_results
    from ..stages.common.runfile import code_version, content_hash

    outputs, name = workspace.outputs, settings.evaluate.gate_task
    results = read_results(outputs / "evaluate" / f"evaluate-{name}" / "results.jsonl")
    policy = next((r for r in results if r.family == "learned" and r.choose == settings.decode.choose), None)
    if policy is None:
        raise DataError(f"{outputs} has no result of the learned policy. Run `dvc repro` first.")
    rival = rule_of_equal_speed(results, policy)
    with beside(folder) as part:
        for path in sorted((outputs / "pretrain" / settings.domain.model).iterdir()):
            if path.name != "source.json":
                copy(path, part / DLLM / path.name)
        copy(outputs / "export" / POLICY, part / POLICY)
        files = sorted(p.relative_to(part).as_posix() for p in part.rglob("*") if p.is_file())
        data = workspace.task(name)
        commit, dirty = code_version(workspace.root)
        card = {
            "commit": commit,
            "dirty": dirty,
            "profile": workspace.profile,
            "task": {field: settings.data.tasks[name].model_dump()[field] for field in ("kind", "params")},
            "rule": f"{rival.family}:{rival.setting}",
            "figures": {
                f"{rival.family}:{rival.setting}": _figures(rival),
                "learned policy": _figures(policy),
            },
            "examples": [asdict(example) for example in data.examples("test", PROMPTS)],
            "files": {file: content_hash(part / file) for file in files},
        }
        write_json(part / CARD, card)


def rule_of_equal_speed(results: Sequence[EvalResult], policy: EvalResult) -> EvalResult:
    """The most accurate full-diffusion rule among those that are no slower than the policy by a tenth."""
    rules = [r for r in results if not r.is_policy and r.block_length == policy.block_length]
    near = [r for r in rules if r.nfe <= 1.1 * policy.nfe] or [min(rules, key=lambda r: r.nfe)]
    return max(near, key=lambda r: r.accuracy)


def _figures(result: EvalResult) -> dict[str, float]:
    return {"accuracy": result.accuracy, "nfe": result.nfe, "prompts": float(result.prompts)}


if __name__ == "__main__":
    from .resolve import active_profile

    pack(*active_profile())
