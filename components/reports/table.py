"""The result table: each trained policy against the best that the heuristics reach with the same number of forwards.

The same rows become Markdown (README, Prefect artifact) and a rich table (screen). The comparison is with the envelope
of *all* swept heuristics of the same task, denoiser and split, mixtures included; ``difference`` is plain accuracy
minus envelope, its paired interval belongs to the promotion gate.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from components.core.files import write_text
from components.evaluation.results import EvalResult
from components.reports import fronts

if TYPE_CHECKING:
    from rich.table import Table

MINUS, NONE = "\N{MINUS SIGN}", "\N{EM DASH}"
HEADINGS = ("task", "dLLM", "split", "policy", "accuracy, %", "seeds", "NFE", "heuristics at that NFE, %", "difference")
TEXT_COLUMNS = (0, 1, 2, 3, 7)


@dataclass(frozen=True)
class Result:
    """A policy's cell and what it is compared with. Accuracies in [0, 1]; NaN where no heuristic was evaluated."""

    cell: EvalResult
    name: str
    envelope: float
    mixture: str
    """The one or two heuristics whose mixture the envelope is at this NFE, or the fastest if all are slower."""

    @property
    def difference(self) -> float:
        return self.cell.accuracy - self.envelope


def results(cells: Sequence[EvalResult]) -> list[Result]:
    """One result per trained policy's cell, in the order of the table; the learned one first within its group."""
    found: list[Result] = []
    for group in fronts.groups(cells).values():
        full = fronts.full_length(group)
        for cell in sorted((c for c in group if c.is_policy), key=lambda c: fronts.POLICIES.index(c.family)):
            used = fronts.mixture_at(group, cell.nfe)
            mixture = " / ".join(fronts.name_of(c, full) for c in used)
            if used and used[0].nfe > cell.nfe:
                mixture += f", the fastest, at {used[0].nfe:.2f}"
            name = fronts.name_of(cell, full)
            found.append(Result(cell, name, fronts.envelope(group, cell.nfe), mixture))
    return found


def markdown(cells: Sequence[EvalResult]) -> str:
    """A GitHub table with one line per result and a sentence under it that says how to read it."""
    return grid(HEADINGS, [_row(result) for result in results(cells)], TEXT_COLUMNS) + "\n" + _legend(cells) + "\n"


def grid(headings: Sequence[str], rows: Iterable[Sequence[str]], text_columns: Collection[int]) -> str:
    """A GitHub table; the columns that are not of text are aligned to the right."""
    align = ["---" if i in text_columns else "---:" for i in range(len(headings))]
    lines = [_line(headings), _line(align), *(_line([part.replace("|", "\\|") for part in row]) for row in rows)]
    return "\n".join(lines) + "\n"


def write(path: Path, cells: Sequence[EvalResult]) -> Path:
    return write_text(path, markdown(cells))


def rich_table(cells: Sequence[EvalResult]) -> Table:
    """The same table for the screen; a gain is green where even the lower end of the accuracy is above the envelope."""
    from rich.table import Table
    from rich.text import Text

    table = Table(caption=_legend(cells), caption_justify="left", header_style="bold", pad_edge=False)
    for i, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if i in TEXT_COLUMNS else "right")
    for result in results(cells):
        row = [Text(part) for part in _row(result)]
        if result.cell.accuracy_low > result.envelope:
            row[-1].stylize("bold green")
        elif result.cell.accuracy_high < result.envelope:
            row[-1].stylize("bold red")
        table.add_row(*row)
    return table


def _row(result: Result) -> list[str]:
    cell = result.cell
    return [
        cell.task,
        cell.denoiser,
        cell.split,
        result.name,
        with_interval(cell),
        str(cell.seeds),
        f"{cell.nfe:.2f}",
        NONE if math.isnan(result.envelope) else f"{100 * result.envelope:.1f} ({result.mixture})",
        points(result.difference),
    ]


def with_interval(cell: EvalResult) -> str:
    """``88.8 ± 1.4`` in percent; the longer side of the interval, so that near 0 and 100 it does not look too sure."""
    half = max(cell.accuracy - cell.accuracy_low, cell.accuracy_high - cell.accuracy)
    return f"{100 * cell.accuracy:.1f}" + ("" if math.isnan(half) else f" ± {100 * half:.1f}")


def points(difference: float) -> str:
    """``+4.8``: percentage points with a sign; a dash where there is nothing to compare with."""
    return NONE if math.isnan(difference) else f"{100 * difference:+.1f}".replace("-", MINUS)


def _legend(cells: Sequence[EvalResult]) -> str:
    counts = sorted({cell.prompts for cell in cells})
    prompts = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return (
        f"± is a 95 % bootstrap interval over {prompts} prompts. Heuristics: the upper envelope of all swept "
        "heuristics at the policy's own number of forward passes (NFE), mixtures of two cells included."
    )


def _line(parts: Sequence[str]) -> str:
    return "| " + " | ".join(parts) + " |"
