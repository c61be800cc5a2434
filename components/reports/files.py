"""Figures written beside and renamed. A report is the old one or the new one, never half."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from components.core.files import beside

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150


def write_figure(path: Path, figure: Figure) -> Path:
    """A PNG at 150 dpi that does not carry a date or a library version, so that equal figures are equal files."""
    with beside(path) as part:
        figure.savefig(part, format="png", dpi=DPI, metadata={"Software": None}, facecolor="white")
    return path
