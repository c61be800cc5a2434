"""A tracker over one MLflow run. It may fail to start, which stops the run; it may not fail a run that has started.

What MLflow could not take meanwhile is in metrics.jsonl, and `publish.py` adds it later.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..core.errors import SettingsError, masked
from ..core.files import flatten
from . import abandoned, pages, store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

log = logging.getLogger(__name__)

METRICS_PER_CALL = 1000  # MLflow's own limit
SETTINGS = "settings.yaml"
FLOW_PAGE = "flow_page"  # tag of a run: the page of its flow run
COMPARED = ("train.alpha", "train.seed", "train.objective", "domain.model")
LONGEST_INTERVAL = 320  # iterations between two attempts at a store that does not answer


class MlflowTracker:
    """Buffers `every` iterations and sends them in one call. See `start`."""

    def __init__(
        self, client: MlflowClient, run_id: str, every: int = 10, known: frozenset[tuple[str, int]] = frozenset()
    ) -> None:
        """known: (metric, step) pairs the run has already; a resumed run repeats them and they are not sent again."""
        self._client = client
        self._run_id = run_id
        self._known = known
        self._buffer: list[Metric] = []
        self._iterations = 0
        self._every = self._interval = every

    @classmethod
    def start(
        cls,
        uri: str,
        experiment: str,
        run_name: str,
        run_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        every: int = 10,
    ) -> MlflowTracker:
        """Opens a run, or the run `run_id` again where the store at `uri` knows it. SettingsError if it cannot."""
        from mlflow.exceptions import MlflowException

        client = store.connect(uri)
        try:
            abandoned.close_in(client)
            if run_id is not None and is_active(client, run_id):
                client.update_run(run_id, status="RUNNING")
                client.set_tag(run_id, abandoned.PROCESS, abandoned.this_process()[abandoned.PROCESS])
                return cls(client, run_id, every, logged_points(client, run_id))
            if run_id is not None:
                log.warning(
                    "%s does not know the run %s that is resumed here. A new one is opened.", masked(uri), run_id
                )
            place = store.experiment(client, experiment)
            named = {clean(k): v for k, v in (tags or {}).items()} | abandoned.this_process()
            run = client.create_run(place, run_name=run_name, tags=named)
            return cls(client, run.info.run_id, every)
        except (MlflowException, OSError) as error:
            raise SettingsError(
                f"no run can be opened in experiment {experiment!r} at {masked(uri)} ({store.first_line(error)}). "
                "Let the store take writes, or set MLFLOW_TRACKING_URI."
            ) from error

    @property
    def run_id(self) -> str | None:
        return self._run_id

    def params(self, settings: Mapping[str, Any]) -> None:
        self._attempt("settings", lambda: log_settings(self._client, self._run_id, settings))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._buffer += metric_entities(metrics, step, int(time.time() * 1000), self._known)
        self._iterations += 1
        if self._iterations >= self._interval:
            self._flush()

    def finish(self, status: str) -> None:
        self._flush()
        self._attempt("the end of the run", lambda: self._client.set_terminated(self._run_id, status))

    def _flush(self) -> None:
        # What was sent twice after a half-failed call is the same row, time included, and the store keeps one.
        what = f"{len(self._buffer)} figures"
        sent = self._attempt(what, lambda: log_metrics(self._client, self._run_id, self._buffer))
        self._iterations = 0
        # Each attempt at a dead server costs seconds: try half as often after each failure.
        self._interval = self._every if sent else min(2 * self._interval, LONGEST_INTERVAL)
        if sent:
            self._buffer = []

    def _attempt(self, what: str, call: Callable[[], object]) -> bool:
        try:
            call()
        except Exception as error:  # whatever the tracking throws, hours of training are worth more than a curve
            why = store.first_line(error)
            log.warning("MLflow did not take %s (%s). The run goes on; `unmask promote` adds it later.", what, why)
            return False
        return True


def clean(name: str) -> str:
    """A name as MLflow allows it for params, metrics and tags: what it refuses becomes an underscore."""
    parts = re.sub(r"[^\w\-./ :]", "_", name, flags=re.ASCII).split("/")
    # A name is a path to MLflow: none of its parts may be empty or mean another folder.
    return "/".join(part if part.strip(".") else "_" for part in parts if part)[:250].rstrip("/")


def log_settings(client: MlflowClient, run_id: str, settings: Mapping[str, Any]) -> None:
    """Add what the run lacks: all settings as one file, and as parameters those that runs are compared by."""
    from mlflow.entities import Param

    if SETTINGS not in {entry.path for entry in client.list_artifacts(run_id)}:
        # By way of JSON: a subclass of str, such as torch's version, would be written as a Python object.
        client.log_dict(run_id, json.loads(json.dumps(settings)), SETTINGS)
    have, given = client.get_run(run_id).data.params, dict(flatten(settings))
    params = [
        Param(name, value if isinstance(value, str) else json.dumps(value))
        for name, value in given.items()
        if name in COMPARED and name not in have
    ]
    if params:
        client.log_batch(run_id, params=params)


def run_name(profile: str, settings: Mapping[str, Any]) -> str:
    """`tiny alpha=2 seed=0`."""
    train, parts = settings.get("train", {}), [profile]
    if "alpha" in train:
        alphas = train["alpha"] if isinstance(train["alpha"], list | tuple) else [train["alpha"]]
        parts.append("alpha=" + ",".join(f"{alpha:g}" for alpha in alphas))
    if "seed" in train:
        parts.append(f"seed={train['seed']}")
    return " ".join(parts)


def metric_entities(
    metrics: Mapping[str, float | None], step: int, timestamp: int, known: frozenset[tuple[str, int]] = frozenset()
) -> list[Metric]:
    """What of these is finite and not known, as MLflow wants it."""
    from mlflow.entities import Metric

    return [
        Metric(clean(key), float(value), timestamp, step)
        for key, value in metrics.items()
        if value is not None and math.isfinite(value) and (clean(key), step) not in known
    ]


def log_metrics(client: MlflowClient, run_id: str, metrics: Sequence[Metric]) -> None:
    for at in range(0, len(metrics), METRICS_PER_CALL):
        client.log_batch(run_id, metrics=metrics[at : at + METRICS_PER_CALL])


def logged_points(client: MlflowClient, run_id: str) -> frozenset[tuple[str, int]]:
    """(metric, step) of all that the run has."""
    keys = client.get_run(run_id).data.metrics
    return frozenset((key, point.step) for key in keys for point in client.get_metric_history(run_id, key))


def is_active(client: MlflowClient, run_id: str) -> bool:
    """Whether the store knows the run and nobody deleted it."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


def run_tags(run: Mapping[str, Any]) -> dict[str, str]:
    """Tags of an MLflow run from what `stages/common/runfile.py` tells of it: profile, commit, dirty, flow_run.

    flow_page is added while that flow run lasts, whose stages alone know its address.
    """
    said = {name: run.get(name) for name in ("profile", "commit", "dirty", "flow_run")}
    tags = {name: str(value) for name, value in said.items() if value is not None}
    page = os.environ.get(pages.FLOW_PAGE, "")
    if "flow_run" in tags and page.endswith(f"/{tags['flow_run']}"):
        tags[FLOW_PAGE] = masked(page)
    # The UI's own columns.
    tags["mlflow.source.git.commit"] = str(run.get("commit", "unknown"))
    return tags | {"mlflow.source.name": f"unmask {run.get('stage', '')}", "mlflow.source.type": "LOCAL"}
