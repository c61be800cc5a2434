"""Addresses of MLflow's pages. Without the workflow type its user interface opens an empty page about GenAI."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable

UI = "UNMASK_MLFLOW_UI"
"""Names the address at which a browser finds MLflow, where that is not the tracking URI."""
FLOW_PAGE = "UNMASK_FLOW_PAGE"
"""Names Prefect's page of the flow run, in the environment of a stage that a flow on a server runs."""
_LEARNING = "?workflowType=machine_learning"
_VIEW = "results"
VIEW = f"mlflow.sharedViewState.{_VIEW}"
"""Tag of an experiment: how its list of runs looks to who follows the link of ``runs``. See ``view``."""


def server(uri: str) -> str:
    """Where a browser finds the pages of the store ``uri``; empty where nobody serves them."""
    return os.environ.get(UI) or (uri if uri.startswith("http") else "")


def experiments(server: str) -> str:
    """The list of experiments. ``server``: where MLflow's user interface answers, such as http://127.0.0.1:5000."""
    return f"{_root(server)}/experiments{_LEARNING}"


def runs(server: str, experiment_id: str) -> str:
    """The runs of an experiment with their verdicts and results as columns."""
    return f"{_root(server)}/experiments/{experiment_id}/runs{_LEARNING}&viewStateShareKey={_VIEW}"


def view(tag: str, metrics: Iterable[str]) -> str:
    """The content of tag ``VIEW``: the columns of the list of runs, in this order and wide enough to be read."""
    widths = {f"tags.`{tag}`": 300} | {f"metrics.`{name}`": 165 for name in metrics}
    return json.dumps({"selectedColumns": list(widths), "columnOrder": list(widths), "columnWidths": widths})


def run(server: str, experiment_id: str, run_id: str) -> str:
    """One run: its note, results and tags."""
    return f"{_root(server)}/experiments/{experiment_id}/runs/{run_id}{_LEARNING}"


def _root(server: str) -> str:
    return f"{server.rstrip('/')}/#"
