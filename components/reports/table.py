"""The result table: each trained policy against the best that the heuristics reach with the same number of forwards.

The comparison is with the envelope of *all* swept heuristics of the same task, denoiser and split, mixtures included;
``difference`` is accuracy minus envelope, with the gate's paired interval where the results per prompt are there.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.files import write_text
from ..evaluation.gate import level
from ..evaluation.results import EvalResult
from ..policies.rules import POLICIES
from . import fronts

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
    interval: tuple[float, float] | None = None
    """The 95 % interval of ``difference``; None where the results per prompt are not there."""

    @property
    def difference(self) -> float:
        return self.cell.accuracy - self.envelope


def results(cells: Sequence[EvalResult]) -> list[Result]:
    """One result per trained policy's cell, in the order of the table; the learned one first within its group."""
    found: list[Result] = []
    for group in fronts.groups(cells).values():
        full, rules = fronts.full_length(group), tuple(cell for cell in group if not cell.is_policy)
        for cell in sorted((c for c in group if c.is_policy), key=lambda c: list(POLICIES).index(c.family)):
            used = fronts.mixture_at(group, cell.nfe)
            mixture = " / ".join(fronts.name_of(c, full) for c in used)
            if used and used[0].nfe > cell.nfe:
                mixture += f", the fastest, at {used[0].nfe:.2f}"
            name = fronts.name_of(cell, full)
            found.append(Result(cell, name, fronts.envelope(group, cell.nfe), mixture, _interval(cell, rules)))
    return found


def _interval(cell: EvalResult, rules: tuple[EvalResult, ...]) -> tuple[float, float] | None:
    if not rules or not all(result.correct_P.size for result in (cell, *rules)):
        return None
    figures = level(cell, rules)
    return figures["score_low"], figures["score_high"]


def markdown(found: Sequence[Result]) -> str:
    """A GitHub table with one line per result and a sentence under it that says how to read it."""
    return grid(HEADINGS, [_row(result) for result in found], TEXT_COLUMNS) + "\n" + _legend(found) + "\n"


def grid(headings: Sequence[str], rows: Iterable[Sequence[str]], text_columns: Collection[int]) -> str:
    """A GitHub table; the columns that are not of text are aligned to the right."""
    align = ["---" if i in text_columns else "---:" for i in range(len(headings))]
    lines = [_line(headings), _line(align), *(_line([part.replace("|", "\\|") for part in row]) for row in rows)]
    return "\n".join(lines) + "\n"


def write(path: Path, found: Sequence[Result]) -> Path:
    return write_text(path, markdown(found))


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
        difference(result),
    ]


def difference(result: Result) -> str:
    """``+5.1 [+2.1, +8.0]`` in percentage points; without brackets where there is no interval."""
    return interval(result.difference, *(result.interval or (math.nan, math.nan)))


def interval(middle: float, low: float, high: float) -> str:
    """``+5.1 [+2.1, +8.0]``; the middle alone where the bounds are NaN."""
    return points(middle) + ("" if math.isnan(low) else f" [{points(low)}, {points(high)}]")


def with_interval(cell: EvalResult) -> str:
    """``88.8 ± 1.4`` in percent; the longer side of the interval, so that near 0 and 100 it does not look too sure."""
    half = max(cell.accuracy - cell.accuracy_low, cell.accuracy_high - cell.accuracy)
    return f"{100 * cell.accuracy:.1f}" + ("" if math.isnan(half) else f" ± {100 * half:.1f}")


def points(difference: float) -> str:
    """``+4.8``: percentage points with a sign; a dash where there is nothing to compare with."""
    if math.isnan(difference):
        return NONE
    rounded = round(100 * difference, 1)
    return f"{rounded:+.1f}".replace("-", MINUS) if rounded else "0.0"


def _legend(found: Sequence[Result]) -> str:
    counts = sorted({result.cell.prompts for result in found}) or [0]
    prompts = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return (
        f"± and brackets are 95 % bootstrap intervals over {prompts} prompts, those of differences paired by prompt. "
        "Heuristics: the upper envelope of all swept heuristics at the policy's own number of forward passes (NFE), "
        "mixtures of two cells included."
    )


def _line(parts: Sequence[str]) -> str:
    return "| " + " | ".join(parts) + " |"
