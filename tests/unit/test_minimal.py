"""docs/minimal.py: short, and it learns what no threshold can do."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "docs" / "minimal.py"


def test_the_whole_idea_fits_150_lines_and_imports_torch_alone() -> None:
    text = FILE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    packages = set(re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE))
    assert packages - set(sys.stdlib_module_names) == {"torch"}


@pytest.mark.learn
def test_the_policy_learns_what_no_threshold_can_do(tmp_path: Path) -> None:
    """The optimum is known: free positions and one of each pair, then the other ones. Two forwards, always correct."""
    done = subprocess.run([sys.executable, str(FILE)], cwd=tmp_path, capture_output=True, text=True, check=True)
    number = r"([\d.]+)"
    lines = re.findall(rf"^(.+?) +reward {number} +accuracy {number} +NFE {number}$", done.stdout, re.MULTILINE)
    results = {name: (float(reward), float(accuracy), float(nfe)) for name, reward, accuracy, nfe in lines}
    before, after = results.pop("policy before"), results.pop("policy after")
    assert after[0] > before[0] + 0.5
    assert len(results) == 6
    assert after[0] > max(reward for reward, _, _ in results.values()) + 0.2
    assert after[1] > 0.99 and after[2] < 2.1
