"""The results of ``unmask bench`` as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from textwrap import wrap
from typing import Any

from rich import box
from rich.table import Table

from .decoding import SECTIONS, Comparison
from .training import IterationCost

NAME = 26  # characters of a name in a line; all columns then fit into 80


def machine(facts: Mapping[str, Any]) -> Table:
    table = Table("", "", title="machine and dLLM", show_header=False, box=box.SIMPLE, title_justify="left")
    for name, value in facts.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
    return table


def decoding(found: Sequence[Comparison]) -> Table:
    headings = ("policy", "NFE", "longest", "tokens/s", "speed-up")
    lines = [
        (
            row.name,
            f"{row.nfe:.2f}",
            str(row.nfe_longest),
            f"{row.engine.tokens_per_second:,.0f} / {row.reference.tokens_per_second:,.0f}",
            spread(row.speedup),
        )
        for row in found
    ]
    return _table("decoding: engine / reference loop, in turn", headings, lines)


def rows(found: Sequence[Comparison]) -> Table:
    headings = ("policy", "prompts", "useful", "same rows", "peak MB")
    lines = [
        (
            row.name,
            str(row.rows),
            f"{row.engine.useful:.3f} / {row.reference.useful:.3f}",
            f"{row.same:.1%}",
            f"{megabytes(row.engine.peak)} / {megabytes(row.reference.peak)}",
        )
        for row in found
    ]
    return _table("rows and memory: engine / reference loop", headings, lines)


def shares(found: Sequence[Comparison]) -> Table:
    lines = [
        (row.name, *(f"{row.engine.shares[name]:.1%} / {row.reference.shares[name]:.1%}" for name in SECTIONS))
        for row in found
    ]
    return _table("where the time goes: engine / reference loop", ("policy", *SECTIONS), lines)


def single(found: Sequence[Mapping[str, Any]]) -> Table:
    lines = [
        (
            row["name"],
            str(row["nfe"]),
            f"{row['engine_seconds']:.3f} / {row['public_seconds']:.3f}",
            spread(row["speedup"]),
            f"{row['same']:.0%}",
        )
        for row in found
    ]
    title = "one whole canvas of 128: engine / a sampler as public code writes it"
    return _table(title, ("rule", "NFE", "seconds", "speed-up", "same"), lines)


def training(found: IterationCost) -> Table:
    parts = [(part, f"{seconds:.2f}", f"{found.shares[part]:.1%}") for part, seconds in found.seconds.items()]
    table = _table("a training iteration", ("part", "seconds", "share"), parts)
    table.add_section()
    table.add_row("rows", f"{found.rows:,}", "")
    table.add_row("(row, step) pairs", f"{found.pairs:,}", f"{found.live:,} to learn from")
    return table


def policy_step(found: Iterable[Mapping[str, Any]]) -> Table:
    lines = [
        (
            row["policy"],
            str(row["rows"]),
            str(row["length"]),
            f"{row['torch_ms']:.3f}",
            f"{row['onnx_ms']:.3f}",
            spread(row["speedup"]),
        )
        for row in found
    ]
    headings = ("policy", "rows", "canvas", "torch ms", "ONNX Runtime ms", "speed-up")
    return _table("the policy's step, one thread", headings, lines)


def on_paper(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> Table:
    return _table("LLaDA-8B on one H100: arithmetic, not measured (docs/costs.md)", headings, list(lines))


def spread(ratios: tuple[float, float, float]) -> str:
    """Median, lowest, highest."""
    middle, lowest, highest = ratios
    return f"{middle:.2f} ({lowest:.2f} to {highest:.2f})"


def megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:,.0f}"


def _table(title: str, headings: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    """Names in lines of NAME characters, numbers to the right; a narrow terminal breaks these between words alone."""
    table = Table(title=title, box=box.SIMPLE, title_justify="left", caption_justify="left")
    table.add_column(headings[0], no_wrap=True)
    for heading, *cells in zip(headings[1:], *(line[1:] for line in lines), strict=True):
        longest = max(len(word) for cell in (heading, *cells) for word in cell.split())
        table.add_column(heading, justify="right", overflow="fold", min_width=longest)
    for name, *numbers in lines:
        table.add_row("\n".join(wrap(name, NAME)), *numbers)
    return table
