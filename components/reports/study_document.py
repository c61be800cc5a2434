"""docs/results.md from the cells of a study: three sentences, a figure, tables, bars, and how the figures are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core.files import write_text
from ..evaluation.results import EvalResult
from ..maths.pareto import front_at
from ..policies.rules import PAIR_ROWS, label_of
from .curves import curve_at
from .judged import REPORTED, Bar
from .study import HEADINGS, NAMES, Runs, Study, best_accuracy, front_row, in_blocks, row, runs
from .table import NONE, grid, points

SPEEDS = (2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0)
SHORT = {
    "evaluate-sudoku_many": "many-answer sudoku",
    "evaluate-sudoku_unique": "sudoku with one solution",
    "transfer-other_dllm": "another dLLM",
    "transfer-longer": "a canvas twice as long there",
    "ood-related": "latin squares",
    "ood-wording": "spellings by content",
    "ood-unrelated": "sorting",
    "ood-queens": "queens",
}


def write(path: Path, study: Study, bars: Sequence[Bar], speed: Mapping[str, Any] | None, facts: str) -> Path:
    """The whole document. facts: a sentence about the machine, the commit, the command and the time."""
    parts = [
        "# Results",
        _opening(study, bars),
        "![Accuracy against forward passes on every case: the rules' front and the policies' curves.](results.png)",
        facts,
        *_main(study),
        *_equal_speed(study),
        *_blocks(study),
        *_ablations(study),
        *_pair_rows(study),
        *([] if speed is None else _speed(speed)),
        *_bars(bars),
        DEFINITIONS,
    ]
    return write_text(path, "\n\n".join(part.strip() for part in parts) + "\n")


def _opening(study: Study, bars: Sequence[Bar]) -> str:
    """Three sentences: the main task, every other case, the bars."""
    case = next(case for case in study.cases() if study.learned(case) is not None)
    one = study.learned(case)
    assert one is not None
    served = one.by_setting["mode"]
    accuracy, nfe = (float(np.mean([getattr(r, name) for r in served])) for name in ("accuracy", "nfe"))
    seeds = f"{len(served)} training seed{'s' if len(served) > 1 else ''}"
    others = [
        f"{name} {points(float(np.mean([_above_rules(r, other.rules) for r in other.by_setting['mode']])))}"
        for case, name in SHORT.items()
        if (other := study.learned(case)) is not None
    ]
    bars = [bar for bar in bars if bar.verdict != REPORTED]
    held, above = sum(bar.held for bar in bars), float(np.mean([_above_rules(r, one.rules) for r in served]))
    return (
        f"On {NAMES.get(case, case).partition(' (')[0].partition(': ')[0]}, a coupled policy of "
        f"{study.first[0].parameters:,} parameters ({seeds}, {served[0].prompts:,} unseen prompts) is right on "
        f"{100 * accuracy:.0f} % at {nfe:.1f} forward passes, where the best mixture of {len(one.rules)} swept rules "
        f"is right on {100 * (accuracy - above):.0f} %. At its own speed it lies this many points above the rules: "
        f"{', '.join(others)}. Of {len(bars)} bars that were set before, {held} are held; "
        "each is listed below with what was seen, and by how much it was missed."
    )


def _main(study: Study) -> list[str]:
    parts = ["## Every case, full diffusion", READING]
    for case in study.cases():
        policies = study.on(case)
        if not policies:
            continue
        best = best_accuracy(policies)
        lines = [front_row(policies[0], best), *(row(one, "mode", best) for one in policies)]
        parts += [f"### {NAMES.get(case, case)}", grid(HEADINGS, lines, (0,))]
    return parts


def _equal_speed(study: Study) -> list[str]:
    """Accuracy at equal forwards: what each part adds."""
    headings = ("case", "curve", *(f"{nfe:g}" for nfe in SPEEDS))
    lines = []
    for case in study.cases():
        policies = study.on(case)
        for number, one in enumerate(policies):
            if number == 0:
                front = [f"{100 * front_at(*one.front, at):.1f}" for at in SPEEDS]
                lines.append([case, "rules' front", *front])
            if len(one.curve()[0]) > 1:
                lines.append(["", one.label, *(_at(one, at) for at in SPEEDS)])
    return [
        "## Accuracy at equal forward passes",
        "Each policy by its own curve (one trained policy asked for more or less speed), in percent at so many forward "
        "passes. A dash: the policy was not asked to be that fast. Reinforced minus influence alone is what "
        "reinforcement adds.",
        grid(headings, lines, (0, 1)),
    ]


def _at(one: Runs, at: float) -> str:
    value = curve_at(*one.curve(), at)
    return NONE if np.isnan(value) else f"{100 * value:.1f}"


def _blocks(study: Study) -> list[str]:
    """The policy in shorter blocks against the rules in the same blocks: as it is served, and over its offsets."""
    lines, wins = [], []
    for name, cell in study.decoding_in_blocks():
        for case in study.cases():
            results = cell.results.get(case, [])
            for block, (own, same) in in_blocks(results).items():
                gaps = [_above_rules(r, same) for r in own]
                served = own[0]
                half = max(served.accuracy - served.accuracy_low, served.accuracy_high - served.accuracy)
                above = _above_rules(served, [r for r in results if not r.is_policy])
                wins += [f"{name}, {case.partition('-')[2]} in {block} ({points(above)})"] if above > 0 else []
                lines.append(
                    [
                        name,
                        case.partition("-")[2],
                        str(block),
                        f"{100 * served.accuracy:.1f} ± {100 * half:.1f}",
                        f"{served.nfe:.2f}",
                        points(gaps[0]),
                        f"{points(min(gaps))} to {points(max(gaps))}",
                        points(above),
                    ]
                )
    headings = (
        "policy",
        "task",
        "block",
        "accuracy, %",
        "NFE",
        "to the rules in the same blocks",
        "over all offsets",
        "to all rules",
    )
    note = (
        "Semi-autoregressive: block after block from left to right. The first training seed. Differences are points to "
        f"the front of the rules at the policy's own NFE. As served it lies above all rules, whatever their blocks: "
        f"{'; '.join(wins) or 'nowhere'}."
    )
    return ["## Blocks", note, grid(headings, lines, (0, 1))] if lines else []


def _above_rules(result: EvalResult, rules: Sequence[EvalResult]) -> float:
    """Accuracy above the front of some rules at the result's own NFE."""
    return result.accuracy - front_at([r.nfe for r in rules], [r.accuracy for r in rules], result.nfe)


def _ablations(study: Study) -> list[str]:
    """One line a cell: its size, what it knows of pairs, and accuracy @ NFE with the difference on each case."""
    cells = [study.first[0], *study.kind("ablation")]
    cases = [case for case in study.cases() if study.learned(case) is not None]
    # The first seed's other cases may be another cell's.
    first = [next(cell for cell in study.first if case in cell.results) for case in cases]
    lines = []
    for cell in cells:
        unexplained = cell.metrics["influence"].get("held_unexplained")
        figures = [cell.about["about"], f"{cell.parameters:,}", NONE if unexplained is None else f"{unexplained:.2f}"]
        for case, owner in zip(cases, first, strict=True):
            one = runs([owner if cell is study.first[0] else cell], case, "learned", "")
            if one is None:
                figures.append(NONE)
                continue
            served = one.by_setting["mode"][0]
            figures.append(
                f"{100 * served.accuracy:.1f} @ {served.nfe:.2f} ({points(_above_rules(served, one.rules))})"
            )
        lines.append(figures)
    headings = ("cell", "parameters", "unexplained", *(case.partition("-")[2] for case in cases))
    note = (
        "One training seed each. Accuracy in percent @ forward passes, and points above the rules' front there. "
        "unexplained: share of the pair shifts that the policy does not know after stage influence, on held prompts."
    )
    return ["## Ablations", note, grid(headings, lines, (0,))] if len(cells) > 1 else []


def _pair_rows(study: Study) -> list[str]:
    """Rules and controls over one trained policy's pair shifts: the accuracy of each at equal forwards."""
    lines = []
    for cell in study.kind("control"):
        for case in cell.results:
            for family in ("learned", *PAIR_ROWS):
                one = runs([cell], case, family, label_of(family))
                if one is None:
                    continue
                if family == "learned":
                    front = [f"{100 * front_at(*one.front, at):.1f}" for at in SPEEDS]
                    lines.append([case.partition("-")[2], "rules' front", *front])
                lines.append(["", one.label, *(_at(one, at) for at in SPEEDS)])
    headings = ("case", "curve", *(f"{nfe:g}" for nfe in SPEEDS))
    note = (
        "One trained policy, in percent at so many forward passes. The two rules read its learned pair shifts in the "
        "place of a head of their own on hidden states; each is swept over its gamma. A control keeps the policy and "
        "replaces its shifts, by rows of other positions, by distance, or by what the task's rules join; it is swept "
        "over the offset. A dash: the row was not asked to be that fast."
    )
    return ["## Whose shifts, and which rule", note, grid(headings, lines, (0, 1))] if lines else []


def _speed(speed: Mapping[str, Any]) -> list[str]:
    lines = [
        [
            one["name"],
            f"{one['parameters']:,}" if one["parameters"] else NONE,
            f"{100 * one['accuracy']:.1f}",
            f"{one['nfe']:.2f}",
            f"{one['tokens_per_second']:,.0f}",
            f"{one['ratio']:.2f} ({one['low']:.2f} to {one['high']:.2f})",
            f"{100 * one['policy']:.0f}",
        ]
        for one in speed["rows"]
    ]
    headings = (
        "decoder",
        "parameters",
        "accuracy, %",
        "NFE",
        "tokens/s",
        "times the first row's speed",
        "policy, % of time",
    )
    note = (
        f"{speed['prompts']} prompts of {speed['task']}, decoded in turn in one process, {speed['repeats']} "
        f"counted rounds, {speed['threads']} thread(s). A ratio is the median of paired rounds (lowest to highest)."
    )
    return ["## Tokens per second", note, grid(headings, lines, (0,))]


def _bars(bars: Sequence[Bar]) -> list[str]:
    lines = [[bar.asked, bar.seen, bar.verdict] for bar in bars]
    note = (
        "Each at the worst place of its range, for each training seed by itself, by the policy's own curve. The range "
        "ends where the policy's fastest setting is; it is stated."
    )
    return ["## The bars", note, grid(("asked", "seen", "verdict"), lines, (0, 1, 2))]


READING = (
    "A policy is decoded by its mode at the setting that it is served at. Intervals are 95 % bootstrap percentiles "
    "over prompts and training seeds. rules' front: the best mixture of all swept rules at the policy's own NFE, "
    "dependence rules and blocks included. difference: accuracy minus front, paired by prompt."
)
DEFINITIONS = """
## What the columns mean

- **NFE**: forward passes of the frozen dLLM per prompt. **TPF**: canvas tokens per forward pass.
- **errors cut**: (policy − front) / (1 − front) at equal NFE. **forwards saved**: 1 − NFE / (the NFE at which
  the front has the policy's accuracy); "not reached" where no mixture of rules ever has it.
- **AUP**, accuracy under parallelism (Hao AI Lab, UC San Diego; arXiv 2601.07568): the points (TPF rho, accuracy y in
  percent) of a method sorted by rho, without those more than 5 points below the first; rho_1 y_1 + sum over i of
  (rho_i − rho_(i-1)) (y_i W(y_i) + y_(i-1) W(y_(i-1))) / 2, W(y) = min(exp(3 (y / y_max − 1)), 1), y_max
  the highest accuracy of any method on the task. A policy's points are its settings of one number; the rules' points
  are the corners of their front. It grows with the range of speeds that a method was asked for.
- **AR-ness@1**, local (arXiv 2506.20639): the share of commits at the position right after the one committed before.
  Positions of one step count as committed from left to right, so that a parallel commit of neighbors counts as
  autoregressive.
- **tau**: Kendall's tau-b between positions and the steps of their commits, with ties (one step) taken out of the
  denominator; 1 from left to right.
- Nothing was tuned on these prompts: settings were chosen on the tune split, promotion uses the gate split.
"""
