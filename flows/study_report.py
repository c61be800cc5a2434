"""docs/results.md and docs/results.png from the cells that `python -m flows.study` has kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from components.core.errors import DataError
from components.core.files import read_json
from components.reports import study_document, study_figure
from components.reports.study import Kept, Study, read_kept
from components.reports.study_bars import bars

if TYPE_CHECKING:
    from flows.study import Cell


def report(checkout: Path, kept: Path, cells: Sequence[Cell], stale: Sequence[str]) -> list[Path]:
    """Write both files from the cells that are there; DataError where the first of them is not.

    kept: the folder of the cells. stale: those whose code or settings have changed since, which the document names.
    """
    there = [read_kept(kept / cell.name) for cell in cells if (kept / cell.name / "cell.json").exists()]
    study = Study(there)
    if not study.default:
        raise DataError(f"{kept} has no cell of the default policy. Run `python -m flows.study` first.")
    speed = kept / "speed.json"
    facts = _facts(there, [cell.name for cell in cells], stale)
    return [
        study_document.write(
            checkout / "docs" / "results.md", study, bars(study), read_json(speed) if speed.exists() else None, facts
        ),
        study_figure.draw(checkout / "docs" / "results.png", study),
    ]


def _facts(there: Sequence[Kept], names: Sequence[str], stale: Sequence[str]) -> str:
    commits = list(dict.fromkeys(cell.run["commit"][:7] for cell in there))
    machines = list(dict.fromkeys(cell.about["machine"] for cell in there))
    seconds, first = sum(cell.about["seconds"] for cell in there), min(cell.about["started"] for cell in there)
    prompts = sorted({result.prompts for cell in there for results in cell.results.values() for result in results})
    open_cells = [name for name in names if name not in {cell.name for cell in there}]
    parts = [
        "Rebuilt by `python -m flows.study && python -m flows.study --speed && python -m flows.study --report`:",
        f"{len(there)} of {len(names)} cells of infra/study.yaml,",
        f"{' and '.join(map(str, prompts))} unseen prompts a case,",
        f"commit {', '.join(f'`{c}`' for c in commits)}, {'; '.join(machines)}, {seconds / 60:.0f} minutes in all,",
        f"begun {first[:10]}.",
    ]
    if open_cells:
        parts.append(f"Not run yet: {', '.join(open_cells)}.")
    if stale:
        which = "all of them" if len(stale) == len(there) else ", ".join(stale)
        parts.append(f"Run by an older commit than this document's: {which}.")
    return " ".join(parts)
