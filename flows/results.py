"""What a flow run shows of its results: its name and tags, its last state, and the artifacts of its page.

Prefect keeps all of it: no password may be in it.
"""

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from prefect import get_client, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from components.core.errors import masked
from components.core.files import flatten, read_json, read_text
from components.evaluation.gate import Verdict
from components.settings import Settings
from components.tracking import pages, store
from components.tracking.publish import Trained, metrics_files

ON_A_CASE = ("evaluate-", "transfer-", "ood-")
PAGES = ("report/card.md", "report/order.html", "report/table.md")


class Figures(TypedDict):
    """What is shown of a policy on a case."""

    accuracy: float
    nfe: float
    front: NotRequired[float | None]
    above_front: NotRequired[float | None]


def name_run(settings: Settings, kind: str) -> None:
    """Name this flow run by profile, alpha and seed, and tag it with them."""
    alpha = settings.train.alpha
    facts = {
        "profile": settings.profile,
        "alpha": ",".join(f"{a:g}" for a in (alpha if isinstance(alpha, list | tuple) else [alpha])),
        "seed": str(settings.train.seed),
    }
    tags = {*flow_run.tags, *(f"{name}:{value}" for name, value in facts.items())}
    name = f"{kind} {facts['profile']} alpha={facts['alpha']} seed={facts['seed']}"
    with get_client(sync_client=True) as client:
        client.update_flow_run(flow_run.id, name=name, tags=sorted(tags))


def headline(verdict: Mapping[str, Any] | None) -> str:
    """The verdict in a few words, for the state of the run."""
    if verdict is None:
        return "evaluated; no promotion was asked for"
    version = f"version {verdict['version']}" if verdict.get("version") else "the policy"
    if verdict.get("live"):
        return f"{version} is already live"
    if not verdict["promote"]:
        return f"refused, {version}: {verdict['reason']}"
    score = verdict.get("figures", {}).get("score")
    return f"promoted {version}" + ("" if score is None else f", {100 * score:+z.1f} points")


def completed(message: str, data: Any) -> State[Any]:
    """The last state of a flow run: what came of it as its message, and what the flow returns."""
    return Completed(message=masked(message), data=data)


def show(path: Path, profile: str, verdict: Mapping[str, Any] | None, uri: str) -> dict[str, Any]:
    """The results as artifacts of this flow run; of skipped stages too, since they are read from the stages' files.

    uri: of the tracking store. Returns the figures of stage evaluate: {task: {policy: {"accuracy": ..., "nfe": ...}}}.
    """
    outputs = path / "outputs" / profile
    key = re.sub("[^a-z0-9]+", "-", profile.lower())
    if verdict is not None:
        show_verdict(profile, verdict)
    if rows := table(outputs):
        create_table_artifact(rows, key=f"{key}-results", description="Each policy against the rules at its speed")
    create_markdown_artifact(metrics_page(outputs, profile), key=f"{key}-metrics", description="What the run measured")
    picture = outputs / "report" / "pareto.png"
    if picture.exists():
        page = f"![Accuracy against forward passes]({data_uri(picture)})\n"
        create_markdown_artifact(page, key=f"{key}-pareto", description="Accuracy against forward passes")
    create_markdown_artifact(
        links_page(outputs, verdict, uri), key=f"{key}-links", description="The run in MLflow and its pages"
    )
    return evaluated(outputs)


def show_verdict(profile: str, verdict: Mapping[str, Any]) -> None:
    """The verdict as an artifact of this flow run."""
    said = str(Verdict(**verdict)) if set(verdict) <= set(Verdict.__dataclass_fields__) else headline(verdict)
    head = f"# {headline(verdict)}\n\n"
    key = re.sub("[^a-z0-9]+", "-", profile.lower())
    create_markdown_artifact(
        head + "".join(f"{line.strip()}  \n" for line in said.splitlines()),
        key=f"{key}-verdict",
        description="The gate's verdict",
    )


def evaluated(outputs: Path) -> dict[str, Any]:
    """The figures of stage evaluate by task."""
    files = sorted((outputs / "metrics").glob("evaluate-*.json"))
    return {file.stem.removeprefix("evaluate-"): read_json(file) for file in files}


def table(outputs: Path) -> list[dict[str, Any]]:
    """A row per case and policy: the difference from the rules' front first, in points, then what it is of."""
    return [
        {
            "case": stage,
            "policy": policy,
            "difference": _points(figures.get("above_front"), "+z.1f"),
            "accuracy, %": _points(figures["accuracy"], ".1f"),
            "forward passes": f"{figures['nfe']:.2f}",
            "rules there, %": _points(figures.get("front"), ".1f"),
        }
        for stage, file in metrics_files(outputs).items()
        if stage.startswith(ON_A_CASE)
        for policy, figures in _learned_first(read_json(file, kind=dict[str, Figures]))
    ]


def _learned_first(figures: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(figures.items(), key=lambda item: item[0] == "learned_mode", reverse=True)


def _points(share: float | None, form: str) -> str:
    return "" if share is None else format(100 * share, form)


def stage_figures(outputs: Path, stage: str) -> str:
    """The first figures that a stage measured, for one line of the log."""
    file = metrics_files(outputs).get(stage.replace("@", "-"))
    found = [(n, v) for n, v in flatten(read_json(file), "/") if isinstance(v, int | float)] if file else []
    return ", ".join(f"{name} {value:.4g}" for name, value in found[:4])


def metrics_page(outputs: Path, profile: str) -> str:
    """Markdown: the report's own table, then every number that a stage measured, a row each."""
    report = outputs / "report" / "table.md"
    page = [f"# Profile {profile}", ""]
    if report.exists():
        page += [read_text(report).strip(), ""]
    page += ["## Metrics of the stages", "", "| stage | metric | value |", "|---|---|---:|"]
    for stage, file in metrics_files(outputs).items():
        for name, value in flatten(read_json(file), separator="/"):
            if isinstance(value, int | float):
                page.append(f"| {stage} | {name} | {float(value):.4g} |")
    return "\n".join(page) + "\n"


def links_page(outputs: Path, verdict: Mapping[str, Any] | None, uri: str) -> str:
    """Markdown links to the training's run in MLflow and to the pages that it holds; else how to see them."""
    run_id = (verdict or {}).get("run_id") or _trained_run(outputs)
    server = pages.server(uri)
    experiment = _experiment(uri, run_id) if run_id and server else None
    if experiment is None:
        how = "" if server else f" Start MLflow's pages with `make up`, or name their address in {pages.UI}."
        return f"MLflow run {run_id or 'none'} of {masked(uri)}.{how}\n"
    shown = masked(server)
    links = [f"- [The run in MLflow]({pages.run(shown, experiment, str(run_id))})"]
    links += [f"- [{name}]({pages.run(shown, experiment, f'{run_id}/artifacts/{name}')})" for name in PAGES]
    links.append(f"- [All runs of the profile]({pages.runs(shown, experiment)})")
    return "\n".join(links) + "\n"


def _trained_run(outputs: Path) -> str | None:
    path = outputs / "train" / "run.json"
    return read_json(path, kind=Trained).get("mlflow_run_id") if path.exists() else None


def _experiment(uri: str, run_id: str) -> str | None:
    """The experiment of a run; None where the store does not know it or does not answer."""
    try:
        with store.reading(uri) as client:
            return client.get_run(run_id).info.experiment_id
    except Exception as error:  # a link less is no reason to fail a run whose stages are done
        get_run_logger().warning("no link to MLflow: %s", masked(str(error)))
        return None


def data_uri(picture: Path) -> str:
    """The PNG itself as an address: the page that shows it need not reach this machine's disk, nor any network."""
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
