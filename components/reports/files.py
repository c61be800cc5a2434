"""The look of all figures; figures written beside and renamed. A report is the old one or the new one, never half."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.files import beside

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.linewidth": 0.8,
    "axes.labelcolor": "#222222",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "grid.color": "#E4E6EA",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


def write_figure(path: Path, figure: Figure) -> Path:
    """A PNG at 150 dpi that does not carry a date or a library version, so that equal figures are equal files."""
    with beside(path) as part:
        figure.savefig(part, format="png", dpi=DPI, metadata={"Software": None}, facecolor="white")
    return path
