"""The results of ``unmask bench`` as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from .decoding import SECTIONS, Comparison
from .training import IterationCost


def machine(facts: Mapping[str, Any]) -> Table:
    table = Table("", "", title="machine and dLLM", show_header=False, box=box.SIMPLE, title_justify="left")
    for name, value in facts.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
    return table


def decoding(found: Sequence[Comparison]) -> Table:
    table = _table(
        "decoding: engine / reference loop, in turn",
        "policy",
        "NFE",
        "longest",
        "tokens/s",
        "speed-up",
    )
    for row in found:
        ours, theirs = row.engine, row.reference
        table.add_row(
            row.name,
            f"{row.nfe:.2f}",
            str(row.nfe_longest),
            f"{ours.tokens_per_second:,.0f} / {theirs.tokens_per_second:,.0f}",
            spread(row.speedup),
        )
    return _whole_words(table)


def rows(found: Sequence[Comparison]) -> Table:
    table = _table("rows and memory: engine / reference loop", "policy", "useful", "same rows", "peak MB")
    for row in found:
        ours, theirs = row.engine, row.reference
        table.add_row(
            row.name,
            f"{ours.useful:.3f} / {theirs.useful:.3f}",
            f"{row.same:.1%}",
            f"{megabytes(ours.peak)} / {megabytes(theirs.peak)}",
        )
    return _whole_words(table)


def shares(found: Sequence[Comparison]) -> Table:
    table = _table("where the time goes: engine / reference loop", "policy", *SECTIONS)
    for row in found:
        ours, theirs = row.engine.shares, row.reference.shares
        table.add_row(row.name, *(f"{ours[name]:.1%} / {theirs[name]:.1%}" for name in SECTIONS))
    return _whole_words(table)


def single(found: Sequence[Mapping[str, Any]]) -> Table:
    table = _table(
        "one whole canvas of 128: engine / a sampler as public code writes it",
        "rule",
        "NFE",
        "seconds",
        "speed-up",
        "same",
    )
    for row in found:
        seconds = f"{row['engine_seconds']:.3f} / {row['public_seconds']:.3f}"
        table.add_row(row["name"], str(row["nfe"]), seconds, spread(row["speedup"]), f"{row['same']:.0%}")
    return _whole_words(table)


def training(found: IterationCost) -> Table:
    table = _table("a training iteration", "part", "seconds", "share")
    for part, seconds in found.seconds.items():
        table.add_row(part, f"{seconds:.2f}", f"{found.shares[part]:.1%}")
    table.add_section()
    table.add_row("rows", f"{found.rows:,}", "")
    table.add_row("(row, step) pairs", f"{found.pairs:,}", f"{found.live:,} to learn from")
    return table


def policy_step(found: Iterable[Mapping[str, Any]]) -> Table:
    table = _table(
        "the policy's step, one thread", "policy", "rows", "canvas", "torch ms", "ONNX Runtime ms", "speed-up"
    )
    for row in found:
        table.add_row(
            row["policy"],
            str(row["rows"]),
            str(row["length"]),
            f"{row['torch_ms']:.3f}",
            f"{row['onnx_ms']:.3f}",
            spread(row["speedup"]),
        )
    return _whole_words(table)


def on_paper(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> Table:
    table = _table("LLaDA-8B on one H100: arithmetic, not measured (docs/costs.md)", *headings)
    for line in lines:
        table.add_row(*line)
    return _whole_words(table)


def spread(ratios: tuple[float, float, float]) -> str:
    """Median, lowest, highest."""
    middle, lowest, highest = ratios
    return f"{middle:.2f} ({lowest:.2f} to {highest:.2f})"


def megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:,.0f}"


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, box=box.SIMPLE, title_justify="left", caption_justify="left")
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", overflow="fold")
    return table


def _whole_words(table: Table) -> Table:
    """The table with columns that break lines between words, in a narrow terminal too."""
    for column in table.columns:
        words = [word for cell in (column.header, *column.cells) for word in str(cell).split()]
        column.min_width = max(map(len, words), default=0)
    return table
