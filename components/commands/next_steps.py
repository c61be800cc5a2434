"""The last lines of `unmask promote`, and so of `make train`: where the pages are, and what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from ..core.errors import masked
from ..evaluation.gate import Verdict
from ..tracking import pages, registry, store

LOCAL = "http://127.0.0.1:5000"
"""Where `mlflow ui` answers when no port is named."""
PAGES = {
    "report/table.md": "the results beside the swept rules",
    "report/card.md": "the policy's card",
    "report/order.html": "decodes, step by step",
    "report/pareto.png": "accuracy against forward passes",
    "report/learning.png": "the training's curves",
    "report/picture.png": "one prompt, rule and policy",
}


def next_steps(outputs: Path, root: Path, profile: str, verdict: Verdict) -> list[str]:
    """The pages of `outputs` that are there, the training's run in MLflow, and commands for this verdict."""
    folder = outputs.relative_to(root)
    found = {name: about for name, about in PAGES.items() if (outputs / name).exists()}
    width = max(len(str(folder / name)) for name in PAGES) + 2
    lines = [f"  {folder / name!s:<{width}}{about}" for name, about in found.items()]
    lines += _mlflow(store.tracking_uri(root), root, verdict)
    commands = list(_commands(folder, profile, verdict))
    width = max(len(command) for command, why in commands if why) + 2
    steps = [f"  {command:<{width}}# {why}" if why else f"  {command}" for command, why in commands]
    return ["pages:", *lines, "next:", *steps]


def _mlflow(uri: str, root: Path, verdict: Verdict) -> Iterator[str]:
    """The run's address, and the command that serves it where no server does."""
    if verdict.run_id is None:  # a dry run writes no run
        return
    experiment = store.connect(uri).get_run(verdict.run_id).info.experiment_id
    server = pages.server(uri)
    yield f"  {masked(pages.run(server or LOCAL, experiment, verdict.run_id))}"
    if not server:
        beside = uri == store.uri_of(root.resolve() / "mlflow.db")
        place = "sqlite:///mlflow.db" if beside else shlex.quote(masked(uri))
        yield f"    served by: mlflow ui --backend-store-uri {place}"


def _commands(folder: Path, profile: str, verdict: Verdict) -> Iterator[tuple[str, str]]:
    live = verdict.promote or verdict.live
    policy = f"models:/{registry.model_name(profile)}@champion" if live else str(folder / "export" / "policy.onnx")
    yield f"unmask compare entropy_bound:0.5 {policy}", ""
    if live:
        yield f"git add dvc.lock {folder / 'result'}", "then commit: the result"
    yield "dvc exp run -S train.alpha=6", "another trade-off of speed"
    yield "unmask promote --dry-run", "the verdict, nothing changed"
