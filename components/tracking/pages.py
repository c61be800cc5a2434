"""Addresses of MLflow's pages. Without the workflow type its user interface opens an empty page about GenAI."""

from __future__ import annotations

from urllib.parse import quote

_LEARNING = "?workflowType=machine_learning"


def experiments(server: str) -> str:
    """The list of experiments. ``server``: where MLflow's user interface answers, such as http://127.0.0.1:5000."""
    return f"{_root(server)}/experiments{_LEARNING}"


def runs(server: str, experiment_id: str) -> str:
    """The runs of an experiment, as a table."""
    return f"{_root(server)}/experiments/{experiment_id}/runs{_LEARNING}"


def run(server: str, experiment_id: str, run_id: str) -> str:
    """One run: its note, results and tags."""
    return f"{_root(server)}/experiments/{experiment_id}/runs/{run_id}{_LEARNING}"


def version(server: str, name: str, number: str) -> str:
    """One version of a registered model."""
    return f"{_root(server)}/models/{quote(name)}/versions/{number}{_LEARNING}"


def _root(server: str) -> str:
    return f"{server.rstrip('/')}/#"
